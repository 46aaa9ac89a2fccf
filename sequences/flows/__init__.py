"""Definitions that are data."""
