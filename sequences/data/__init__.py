"""JSON in and out, typed data, and the redaction of secrets."""
