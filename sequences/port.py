"""What models and sequences ask of the engine, and which engine that is.

The engine stands on the tables and on `Sequence`, so neither can import it. As an actor of Dramatiq
has its broker by `get_broker`, they have it by `get_engine`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .exceptions import SequenceError

if TYPE_CHECKING:
    from .definitions.definition import Unique
    from .models import SequenceRun, SequenceRunQuerySet
    from .sequence import Sequence

    S = TypeVar("S", bound=Sequence[Any])
    SequenceClass = type[Sequence[Any]]


class Engine(Protocol):
    """What starts sequences, executes their steps, and performs operations on their runs."""

    def bind(self, cls: SequenceClass, /) -> None:
        """Declare the actors of a sequence; raises `InvalidDefinition` for an unknown option."""

    def start(
        self,
        cls: type[S],
        data: Any,
        /,
        *,
        key: str | None,
        unique: Unique,
        delay: timedelta | int | None,
    ) -> S:
        """See `Sequence.start`."""

    def start_many(self, cls: type[S], iterable: Iterable[Any], /) -> list[S]:
        """See `Sequence.start_many`."""

    def runs(self, cls: SequenceClass, /) -> SequenceRunQuerySet:
        """The runs of a sequence, under its earlier names too."""

    def operate(self, run: SequenceRun, action: str, /, **options: Any) -> Any:
        """Perform an operation on a run: see the methods of `SequenceRun`."""

    def payload(self, run: SequenceRun, event: Any, default: Any, /) -> Any:
        """See `SequenceRun.payload`."""

    def child_ended(self, parent: int, using: str, /) -> None:
        """A child of this step run has ended, and that is committed."""


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
            "INSTALLED_APPS, and call this later than at import."
        )
    return _engine
