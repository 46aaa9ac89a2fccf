"""JSON in and out, typed data, and what is hidden in it."""
