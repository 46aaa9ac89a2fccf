"""Small helpers that know nothing about sequences."""
