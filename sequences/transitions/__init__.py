"""All writes of state. Each is guarded: it checks that the row was still as expected."""
