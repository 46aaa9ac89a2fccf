"""The engine behind the port, which models and sequences reach through `get_engine`."""

from __future__ import annotations

from ..transitions.backends import backend_of
from .actors import bind
from .handoff import child_ended
from .limits import change_limit, limits_changed, reset_limit
from .operations import delivery, operate, payload
from .outbox import dispatch
from .schedules import create_schedule, operate_schedule, schedules_of
from .start import runs, start, start_many


class DramatiqEngine:
    """Runs steps as actors of Dramatiq, and stores runs as rows."""

    bind = staticmethod(bind)
    start = staticmethod(start)
    start_many = staticmethod(start_many)
    runs = staticmethod(runs)
    operate = staticmethod(operate)
    delivery = staticmethod(delivery)
    payload = staticmethod(payload)
    create_schedule = staticmethod(create_schedule)
    schedules = staticmethod(schedules_of)
    operate_schedule = staticmethod(operate_schedule)
    database = staticmethod(backend_of)
    dispatch = staticmethod(dispatch)
    child_ended = staticmethod(child_ended)
    change_limit = staticmethod(change_limit)
    reset_limit = staticmethod(reset_limit)
    limits_changed = staticmethod(limits_changed)
