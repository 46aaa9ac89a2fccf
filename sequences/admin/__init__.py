"""The admin. A project can subclass these classes and register its own."""

from .limits import StoredLimitAdmin
from .runs import SequenceRunAdmin
from .runs_inline import RunsInline
from .schedules import ScheduleAdmin
from .step_runs import StepRunAdmin

__all__ = ["RunsInline", "ScheduleAdmin", "SequenceRunAdmin", "StepRunAdmin", "StoredLimitAdmin"]
