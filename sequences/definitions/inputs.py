"""The declared inputs of a definition: the data that its runs start with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from django.utils.translation import gettext_noop as _

from ..exceptions import InvalidData, Text


@dataclass(frozen=True)
class Input:
    """A key of the data that a run starts with, and its label."""

    label: str = ""
    is_required: bool = False
    #: The default under this name, if it has one, which may be None.
    declared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """All inputs of a definition. Data may have other keys, too."""

    by_name: Mapping[str, Input]

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of those inputs that have one."""
        inputs = {name: spec.declared for name, spec in self.by_name.items()}
        return {name: spec["default"] for name, spec in inputs.items() if "default" in spec}

    def check(self, data: Mapping[str, Any]) -> None:
        """Raise `InvalidData` if a required input is missing."""
        for name, declared in self.by_name.items():
            if declared.is_required and name not in data:
                what = f"{name!r} ({declared.label})" if declared.label else repr(name)
                problem = Text(_("lacks %(input)s"), input=what)
                raise InvalidData(path="data", problem=problem, hint=self._hint(name, data))

    def _hint(self, name: str, data: Mapping[str, Any]) -> str:
        others = [key for key in data if key not in self.by_name]
        if near := get_close_matches(name, others, n=1):
            return Text(_("Is %(key)r a misspelling of it?"), key=near[0])
        return _("Pass it when you start the run.")
