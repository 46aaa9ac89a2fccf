"""The life of a step: claim, execute, commit, hand off; and what is done to runs."""
