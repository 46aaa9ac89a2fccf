"""The kinds of steps as values: one line each, used by all code that depends on the kind.

How the engine executes each kind is defined in `engine/kinds`, with a class for every line of this
table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: For the message catalogues, which look for this name. Code that shows a word translates it.
_ = str


@dataclass(frozen=True, slots=True)
class Traits:
    """The properties of a kind of step. All code asks for these; none compares names of kinds."""

    #: The value of `StepRun.kind` and of nodes in the plan.
    name: str
    #: Its name in messages for developers: "this step is a fan-out here".
    noun: str
    #: Its name for people.
    label: str
    #: Its label in diagrams; ``{step}`` is the step that it undoes. Empty: it needs none.
    caption: str = ""
    #: The label shown while it waits for others.
    waiting: str = ""
    #: Whether it creates a step run for each item.
    has_items: bool = False
    #: Whether it is an item: it has a row of its own, but no node in the plan.
    is_item: bool = False
    #: Whether it starts child runs and waits until they have ended.
    has_children: bool = False
    #: Whether it waits for a delivery: it runs none of the project's code.
    takes_delivery: bool = False
    #: Whether it undoes another step.
    is_undo: bool = False
    #: Whether it runs last, when it is decided how the run ends.
    is_closing: bool = False
    #: Its order among the kinds that are off the main path; 0: it is on the main path.
    turn: int = 0

    @property
    def is_compensation(self) -> bool:
        """Whether it runs only after it is decided how its run ends."""
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

#: Kinds by what they have in common, for queries.
ITEM_KINDS = frozenset(kind.name for kind in _ALL if kind.is_item)
FAN_OUT_KINDS = frozenset(kind.name for kind in _ALL if kind.has_items)
PARENT_KINDS = frozenset(kind.name for kind in _ALL if kind.has_children)
EVENT_KINDS = frozenset(kind.name for kind in _ALL if kind.takes_delivery)
UNDO_KINDS = frozenset(kind.name for kind in _ALL if kind.is_undo)
CLOSING_KINDS = frozenset(kind.name for kind in _ALL if kind.is_closing)
COMPENSATION_KINDS = UNDO_KINDS | CLOSING_KINDS
ALL_KINDS = frozenset(KINDS)
#: The kinds on the path of a run without failures.
MAIN_KINDS = ALL_KINDS - COMPENSATION_KINDS - ITEM_KINDS


def traits_of(kind: str) -> Traits:
    """The traits of this kind. An unknown kind, of a later release, counts as a plain step."""
    return KINDS.get(kind) or replace(_PLAIN, name=kind, noun=kind, label=kind)
