"""Definitions in YAML or JSON files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..exceptions import InvalidDefinition
from ..sequence import Sequence
from .builder import build

#: The most values in a YAML file, counting aliases each time: merging writes each of them out.
MAX_NODES = 200_000


def load(pattern: str, /) -> list[type[Sequence[Any]]]:
    """Declare a sequence per file: ``load("flows/*.yaml")``, in an app's sequences.py.

    A relative pattern is relative to the module that calls this. The files are YAML (with the extra
    ``yaml``) or JSON, by suffix; each has a ``name``. Returns the classes, in the order of the file
    names. Raises `InvalidDefinition`, which names the file and the step.
    """
    caller = sys._getframe(1).f_globals
    file = caller.get("__file__")  # an interactive shell has none
    folder = Path(file).resolve().parent if file else Path.cwd()
    paths = sorted(Path(folder.anchor).glob(_inside(folder / pattern)))
    if not paths:
        hint = "Fix the pattern. It is relative to the module that calls load()."
        raise InvalidDefinition(where=f"load({pattern!r})", problem="matches no file", hint=hint)
    return [_load(path, caller["__name__"]) for path in paths]


def _inside(path: Path) -> str:
    """The pattern relative to the root: `Path.glob` does not take absolute patterns."""
    return str(path.relative_to(path.anchor))


def read(path: Path) -> dict[str, Any]:
    """Read the mapping in a file. Raises `InvalidDefinition`, and `OSError`."""
    return _read(path, _relative(path))


def _load(path: Path, module: str) -> type[Sequence[Any]]:
    file = _relative(path)
    return build(Sequence, read(path), name=None, module=module, file=file)


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _read(path: Path, file: str) -> dict[str, Any]:
    readers = {".json": _json, ".yaml": _yaml, ".yml": _yaml}
    read = readers.get(path.suffix.lower())
    if read is None:
        problem = f"its suffix is {path.suffix!r}"
        raise _invalid(file, problem, f"Use one of {', '.join(readers)}.")
    try:
        mapping = read(path.read_text(encoding="utf-8"), file)
    except RecursionError:
        raise _invalid(file, "it is nested too deeply", "Flatten it.") from None
    except UnicodeDecodeError as error:
        raise _invalid(file, f"it is not UTF-8: {error}", "Save it as UTF-8.") from None
    if not isinstance(mapping, dict):
        raise _invalid(file, "it does not contain a mapping", "Start with name: and steps:.")
    return mapping


def _json(text: str, file: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key in _twice(key for key, _ in pairs):
            raise _invalid(
                file, f"the key {key!r} appears twice in a mapping", "Rename one of them."
            )
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise _invalid(file, f"it is not valid JSON: {error}", "Correct the file.") from None


def _yaml(text: str, file: str) -> Any:
    try:
        import yaml
    except ImportError:
        hint = 'Install it: pip install "django-dramatiq-sequences[yaml]".'
        raise _invalid(file, "YAML files need PyYAML", hint) from None
    try:
        return yaml.load(text, Loader=_loader())  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise _invalid(
            file, f"it is not valid YAML: {_problem_of(error)}", "Correct the file."
        ) from None


def _problem_of(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader that rejects duplicate keys, and leaves dates as strings, as in JSON."""

        def get_single_node(self) -> Any:
            node: Any = super().get_single_node()
            if _nodes(node) > MAX_NODES:
                problem = f"it has more than {MAX_NODES:,} values once its aliases are expanded"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node: Any = super().compose_mapping_node(anchor)
            scalars = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            marks = [(str(key.value), key.start_mark) for key in scalars]
            for key in _twice(key for key, _ in marks):
                problem = f"the key {key!r} appears twice in a mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=dict(marks)[key])
            return node

    Loader.yaml_implicit_resolvers = {
        letter: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _nodes(node: Any) -> int:
    """The number of nodes, counting an alias as all that it stands for; stops at the limit."""
    count, level = 0, [node]
    while level and count <= MAX_NODES:
        count += len(level)
        level = list(islice(chain.from_iterable(map(_below, level)), MAX_NODES + 1))
    return count


def _below(node: Any) -> Iterator[Any]:
    parts = node.value if isinstance(getattr(node, "value", None), list) else ()
    for part in parts:
        yield from part if isinstance(part, tuple) else (part,)


def _twice(keys: Iterator[str]) -> Iterator[str]:
    distinct: set[str] = set()
    for key in keys:
        if key in distinct:
            yield key
        distinct.add(key)


def _invalid(file: str, problem: str, hint: str) -> InvalidDefinition:
    return InvalidDefinition(where=file, problem=problem, hint=hint)
