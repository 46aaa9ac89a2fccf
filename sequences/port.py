"""What models and sequences need from the engine, and access to it.

The engine is built on the tables and on `Sequence`, so neither can import it. They reach it through
`get_engine`, just as a Dramatiq actor reaches its broker through `get_broker`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from .exceptions import SequenceError

if TYPE_CHECKING:
    from .definitions.option_types import StartOptions


class Database(Protocol):
    """What the tables need to know about their database."""

    @property
    def orders_ids(self) -> bool:
        """Whether it sorts ids in the order of their digits."""

    def exact_collation(self, connection: Any, /) -> str | None:
        """The collation in which a string equals only itself. None: the default one is exact."""


class Engine(Protocol):
    """Starts sequences, executes their steps, and performs operations on their runs."""

    def bind(self, cls: type[Any], /) -> None:
        """Declare the actors of a sequence; raises `InvalidDefinition` for an unknown option."""

    def start(
        self,
        cls: type[Any],
        data: Any,
        /,
        **options: Unpack[StartOptions],
    ) -> Any:
        """See `Sequence.start`."""

    def start_many(self, cls: type[Any], iterable: Iterable[Any], /) -> list[Any]:
        """See `Sequence.start_many`."""

    def runs(self, cls: type[Any], /) -> Any:
        """The runs of a sequence, including those under its earlier names."""

    def operate(self, run: Any, action: str, /, **options: Any) -> Any:
        """Perform an operation on a run: see the methods of `SequenceRun`."""

    def create_schedule(
        self,
        cls: type[Any],
        name: str,
        timetable: Any,
        /,
        *,
        data: Any,
        subject: Any,
        by: Any,
        reason: str,
    ) -> Any:
        """See `Schedules.create`."""

    def schedules(self, cls: type[Any], /) -> Any:
        """The schedules of a sequence, including those under its earlier names."""

    def operate_schedule(self, schedule: Any, action: str, /, **options: Any) -> Any:
        """Perform an operation on a schedule: see the methods of `Schedule`."""

    def delivery(self, run: Any, event: Any, payload: Any, by: Any, /) -> tuple[str, Any, str]:
        """What `SequenceRun.deliver_url` signs: the event's name, the payload, and who delivers
        it."""

    def payload(self, run: Any, event: Any, default: Any, /) -> Any:
        """See `SequenceRun.payload`."""

    def database(self, using: str, /) -> Database:
        """The peculiarities of the database with this alias."""

    def dispatch(self, message: Any, /, *, delay: timedelta | int | None) -> None:
        """See `sequences.dispatch`."""

    def child_ended(self, parent: int, using: str, /) -> None:
        """Called after the commit that ended a child of this step run."""

    def change_limit(
        self,
        limit: Any,
        /,
        *,
        concurrency: int | None,
        rate: int | None,
        per: timedelta | None,
        by: Any,
        reason: str,
    ) -> None:
        """See `StoredLimit.change`."""

    def reset_limit(self, limit: Any, /, *, by: Any) -> None:
        """See `StoredLimit.reset`."""

    def limits_changed(self, run: Any, using: str, /) -> None:
        """Called after a commit in which a run may have given up places under limits."""


_engine: Engine | None = None


def set_engine(engine: Engine) -> None:
    """Set the engine; called by `apps.ready`."""
    global _engine
    _engine = engine


def has_engine() -> bool:
    """Whether Django is ready and the engine is set."""
    return _engine is not None


def get_engine() -> Engine:
    """Return the engine. Raises `SequenceError` before Django is ready."""
    if _engine is None:
        raise SequenceError(
            "Sequences and runs cannot be used before Django is ready. Add the app to "
            "INSTALLED_APPS, and do not call this at import time."
        )
    return _engine
