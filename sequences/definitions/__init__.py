"""The declarations of a class, as values."""
