"""What each kind of step is, as values: one line for each, read by all who decide or show by it.

What an attempt of each kind does is in `engine/kinds`: a class for every line of this table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: For the catalogues of messages, which look for this name. Who shows a word translates it.
_ = str


@dataclass(frozen=True, slots=True)
class Traits:
    """What a kind of step is. All questions about a kind are asked here, none by its name."""

    #: What `StepRun.kind` says, and the node in the plan.
    name: str
    #: Its word in messages for developers: "this step is a fan-out here".
    noun: str
    #: Its word for people.
    label: str
    #: What diagrams say of it; ``{step}`` is the step that it undoes. Empty: it needs no words.
    caption: str = ""
    #: What people read while it waits for others.
    waiting: str = ""
    #: Whether it makes a step run for each item.
    has_items: bool = False
    #: Whether it is one of those: it has a row of its own, and no node in the plan.
    is_item: bool = False
    #: Whether it starts runs, and waits for their end.
    has_children: bool = False
    #: Whether it waits for a delivery: no code of the project's runs in it.
    takes_delivery: bool = False
    #: Whether it takes another step back.
    is_undo: bool = False
    #: Whether it comes last, when it is decided how the run ends.
    is_closing: bool = False
    #: Its turn among those that stand beside the main line; 0: it stands on it.
    turn: int = 0

    @property
    def is_compensation(self) -> bool:
        """Whether it does not decide how its run ends."""
        return self.is_undo or self.is_closing


_ALL = (
    Traits("step", "a plain step", _("step")),
    Traits(
        "each", "a fan-out", _("fan-out"), _("fan-out"), _("waiting for items"), has_items=True
    ),
    Traits("item", "an item", _("item"), is_item=True),
    Traits("event", "an event", _("event"), _("event"), takes_delivery=True),
    Traits(
        "subsequence", "a subsequence", _("child run"), _("child run"), _("waiting for child runs"),
        has_children=True,
    ),
    Traits("undo", "an undo", _("undo"), _("undo of {step}"), is_undo=True, turn=1),
    Traits(
        "on_failure", "an on_failure", _("on failure"), _("on failure"), is_closing=True, turn=2
    ),
    Traits(
        "on_cancel", "an on_cancel", _("on cancellation"), _("on cancellation"), is_closing=True,
        turn=3,
    ),
    Traits("on_end", "an on_end", _("at the end"), _("at the end"), is_closing=True, turn=4),
)  # fmt: skip
KINDS: dict[str, Traits] = {traits.name: traits for traits in _ALL}
_PLAIN = KINDS["step"]

#: By what they have in common, for those who select rows.
ITEM_KINDS = frozenset(kind.name for kind in _ALL if kind.is_item)
FAN_OUT_KINDS = frozenset(kind.name for kind in _ALL if kind.has_items)
PARENT_KINDS = frozenset(kind.name for kind in _ALL if kind.has_children)
EVENT_KINDS = frozenset(kind.name for kind in _ALL if kind.takes_delivery)
UNDO_KINDS = frozenset(kind.name for kind in _ALL if kind.is_undo)
CLOSING_KINDS = frozenset(kind.name for kind in _ALL if kind.is_closing)
COMPENSATION_KINDS = UNDO_KINDS | CLOSING_KINDS
ALL_KINDS = frozenset(KINDS)
#: Of the steps that a run without a failure goes through.
MAIN_KINDS = ALL_KINDS - COMPENSATION_KINDS - ITEM_KINDS


def traits_of(kind: str) -> Traits:
    """What this kind is. One of a later release counts as a plain step of that name."""
    return KINDS.get(kind) or replace(_PLAIN, name=kind, noun=kind, label=kind)
