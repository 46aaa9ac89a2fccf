"""Small things that know nothing of sequences."""
