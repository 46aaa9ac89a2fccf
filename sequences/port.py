"""What models and sequences ask of the engine, and which engine that is.

The engine stands on the tables and on `Sequence`, so neither can import it. As an actor of Dramatiq
has its broker by `get_broker`, they have it by `get_engine`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from .exceptions import SequenceError

if TYPE_CHECKING:
    from .definitions.option_types import StartOptions


class Database(Protocol):
    """What the tables ask of the database that they are in."""

    @property
    def orders_ids(self) -> bool:
        """Whether it orders ids as their digits are ordered."""

    def exact_collation(self, connection: Any, /) -> str | None:
        """The collation in which a text equals only itself. None: every collation is one."""


class Engine(Protocol):
    """What starts sequences, executes their steps, and performs operations on their runs."""

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
        """The runs of a sequence, under its earlier names too."""

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
        """The schedules of a sequence, under its earlier names too."""

    def operate_schedule(self, schedule: Any, action: str, /, **options: Any) -> Any:
        """Perform an operation on a schedule: see the methods of `Schedule`."""

    def delivery(self, run: Any, event: Any, payload: Any, by: Any, /) -> tuple[str, Any, str]:
        """What `SequenceRun.deliver_url` signs: the event's name, the payload, and by whom."""

    def payload(self, run: Any, event: Any, default: Any, /) -> Any:
        """See `SequenceRun.payload`."""

    def database(self, using: str, /) -> Database:
        """What the database of this alias does in its own way."""

    def dispatch(self, message: Any, /, *, delay: timedelta | int | None) -> None:
        """See `sequences.dispatch`."""

    def child_ended(self, parent: int, using: str, /) -> None:
        """A child of this step run has ended, and that is committed."""

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
        """A run may have given up places under limits, and that is committed."""


_engine: Engine | None = None


def set_engine(engine: Engine) -> None:
    """Use this engine from now on; `apps.ready` does that."""
    global _engine
    _engine = engine


def has_engine() -> bool:
    """Whether Django is ready, as far as sequences are concerned."""
    return _engine is not None


def get_engine() -> Engine:
    """The engine. Raises `SequenceError` before Django is ready."""
    if _engine is None:
        raise SequenceError(
            "Sequences and runs cannot be used before Django is ready. Add the app to "
            "INSTALLED_APPS, and do not call this at import time."
        )
    return _engine
