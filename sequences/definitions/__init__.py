"""What a class declares, as values."""
