"""The data behind everything that people see of runs."""
