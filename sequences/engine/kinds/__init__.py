"""The kinds of step runs, by the names in their rows. A new kind is a file and a line here."""

from __future__ import annotations

from .base import Kind
from .event import Event
from .fan_out import FanOut
from .item import Item
from .on_cancel import OnCancel
from .on_end import OnEnd
from .on_failure import OnFailure
from .step import Step
from .subsequence import Subsequence
from .undo import Undo


class _Kinds(dict[str, Kind]):
    """The class for each kind. An unknown kind, of a later release, counts as a plain step, which
    its plan then rejects."""

    def __missing__(self, name: str) -> Kind:
        return self["step"]


KINDS = _Kinds(
    (kind.name, kind)
    for kind in (
        Step(),
        FanOut(),
        Item(),
        Event(),
        Subsequence(),
        Undo(),
        OnFailure(),
        OnCancel(),
        OnEnd(),
    )
)
kind_of = KINDS.__getitem__
