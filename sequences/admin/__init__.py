"""Sequences in Django's admin. A project can subclass these classes, and register its own."""

from .runs import SequenceRunAdmin
from .step_runs import StepRunAdmin

__all__ = ["SequenceRunAdmin", "StepRunAdmin"]
