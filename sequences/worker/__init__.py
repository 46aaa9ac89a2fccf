"""What lives in a worker process."""
