"""Whole programs, written from the documentation alone, as their users would write them.

mypy and pyright check their types; `tests/acceptance/test_programs.py` runs them on real workers.
"""
