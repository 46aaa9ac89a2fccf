"""Definitions as data."""
