"""The life of a step (claim, execute, commit, hand off), and operations on runs."""
