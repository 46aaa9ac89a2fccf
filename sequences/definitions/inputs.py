"""What a definition says of the data that its runs begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..exceptions import InvalidData, did_you_mean


@dataclass(frozen=True)
class Input:
    """A key of the data that a run begins with, and what people call it."""

    label: str = ""
    is_required: bool = False
    #: The default under this name, if it has one: it may be None.
    declared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """All of a definition. Data may have other keys, too."""

    by_name: Mapping[str, Input]

    @property
    def defaults(self) -> dict[str, Any]:
        """Of those that have one."""
        inputs = {name: spec.declared for name, spec in self.by_name.items()}
        return {name: spec["default"] for name, spec in inputs.items() if "default" in spec}

    def check(self, data: Mapping[str, Any]) -> None:
        """Raises `InvalidData` if one that is required is missing."""
        for name, declared in self.by_name.items():
            if declared.is_required and name not in data:
                what = f"{name!r} ({declared.label})" if declared.label else repr(name)
                hint = did_you_mean(name, [key for key in data if key not in self.by_name])
                raise InvalidData(
                    path="data", problem=f"lacks {what}", hint=hint or "Pass it at the start."
                )
