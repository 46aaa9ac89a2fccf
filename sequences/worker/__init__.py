"""What runs in a worker process besides the steps."""
