"""Data goes one way through the house, and so do dependencies."""

import ast
import inspect
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sequences
from sequences.definitions.kinds import ALL_KINDS
from sequences.diagrams import icons
from sequences.engine.kinds import KINDS

ROOT = Path(sequences.__file__).parent

#: From the bottom to the top: what stands in a room imports from there and from the lines above.
ROOMS = [
    "utils",
    "exceptions",
    "conf",
    "port",
    "definitions",
    "data",
    "links outbox",
    "models",
    "signals",
    "diagrams",
    "sequence",
    "transitions",
    "engine",
    "worker",
    "flows",
    "inspection",
    "__init__ brokers logs testing checks apps tasks migrations "
    "admin management urls views templatetags",
]
#: What knows neither Django nor Dramatiq.
PURE = (
    "exceptions",
    "utils",
    "definitions.kinds",
    "definitions.plan",
    "definitions.rules",
    "data.serialization",
    "data.redaction",
    "diagrams",
)
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
#: Methods of managers, querysets and instances that write.
WRITES = {
    "save",
    "create",
    "get_or_create",
    "update_or_create",
    "bulk_create",
    "bulk_update",
    "delete",
    "_raw_delete",
}


def name_of(path):
    """The dotted name below the package: ``transitions.claims``."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def floor_of(module):
    top = module.split(".")[0]
    floors = [floor for floor, rooms in enumerate(ROOMS) if top in rooms.split()]
    assert len(floors) == 1, f"{module} has no room: give it one in {Path(__file__).name}"
    return floors[0]


def is_pure(module):
    return any(module == room or module.startswith(f"{room}.") for room in PURE)


def tree_of(path):
    return ast.parse((ROOT / path).read_text())


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(tree):
    """Every import that is executed: at the top and in functions, not those for type checkers."""
    if is_for_types(tree):
        for child in tree.orelse:
            yield from imports_of(child)
        return
    if isinstance(tree, ast.Import | ast.ImportFrom):
        yield tree
    for child in ast.iter_child_nodes(tree):
        yield from imports_of(child)


def imported(path, node):
    """The absolute names of the modules that a statement may import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = ["sequences", *path.parts[:-1]]
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names]


def module_of(dotted):
    """The longest beginning of a name that is a module of the package: ``transitions.claims``."""
    parts = dotted.split(".")[1:]
    known = {name_of(path) for path in MODULES}
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


def dependencies(path):
    """Which modules of the package this one imports."""
    names = [name for node in imports_of(tree_of(path)) for name in imported(path, node)]
    own = {module_of(name) for name in names if name.split(".")[0] == "sequences"}
    return own - {name_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_its_room_and_those_below(path):
    module = name_of(path)
    above = {found for found in dependencies(path) if floor_of(found) > floor_of(module)}
    assert not above, f"{module} imports {', '.join(sorted(above))} from a room above its own"


def test_no_imports_go_round_in_a_circle():
    graph = {name_of(path): dependencies(path) for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circular: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("path", [path for path in MODULES if is_pure(name_of(path))], ids=name_of)
def test_a_pure_module_knows_neither_django_nor_dramatiq(path):
    names = [name for node in imports_of(tree_of(path)) for name in imported(path, node)]
    assert not {name for name in names if name.split(".")[0] in ("django", "dramatiq")}


def writes_of(path):
    for node in ast.walk(tree_of(path)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        receiver, method = ast.unparse(node.func.value), node.func.attr
        if receiver.endswith(".schedules"):  # an operation, which calls a transition
            continue
        queried = any(name in receiver for name in ("objects", "_base_manager", ".filter("))
        if method in WRITES or (method == "update" and queried):
            yield f"{receiver}.{method}"


# `testing` sets scenes, as the tests of a project do; it is no part of what runs in production.
@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if name_of(p).split(".")[0] not in ("transitions", "testing")],
    ids=name_of,
)
def test_all_writes_of_state_are_transitions(path):
    assert list(writes_of(path)) == []


#: Participles and numerals are no names: they say what was done to a thing and not what it is.
PARTICIPLES = "asked begun chosen found given held kept known one said seen shown taken told wanted"


def names_in(tree):
    """The names that a module gives: to variables, arguments, attributes, functions, classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.MatchAs):
            yield node.name or ""


def no_names_of(path):
    return {name.strip("_") for name in names_in(tree_of(path))} & set(PARTICIPLES.split())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_are_nouns_of_things(path):
    assert not no_names_of(path), "name the thing: step_runs, row, definition"


def test_each_kind_of_step_has_its_class_its_file_its_icon_and_its_line_in_the_docs():
    architecture = (ROOT.parent / "docs" / "architecture.md").read_text()
    assert set(KINDS) == ALL_KINDS
    for name, kind in KINDS.items():
        file = Path(inspect.getfile(type(kind))).name
        assert file not in ("base.py", "__init__.py")
        assert f"| `{name}` | `{file}` |" in architecture
        # An item stands inside the box of its fan-out.
        assert name == "item" or name in icons._KINDS


#: Where a kind has its name: the table, its class, its declaration, and its key in definitions.
GIVES_NAMES = ("definitions.kinds", "engine.kinds", "definitions.steps", "flows.parser")


def kinds_asked_in(tree):
    """Comparisons of a kind with a name, and conditions on it: ``kind == "event"``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if not any(ast.unparse(side).endswith("kind") for side in sides):
                continue
        elif isinstance(node, ast.Call) and _is_condition(node):
            sides = [word.value for word in node.keywords if (word.arg or "").startswith("kind")]
        else:
            continue
        for side in sides:
            yield from (part.value for part in ast.walk(side) if isinstance(part, ast.Constant))


def _is_condition(call):
    return ast.unparse(call.func).rpartition(".")[2] in ("filter", "exclude", "get", "Q", "When")


@pytest.mark.parametrize(
    "path", [path for path in MODULES if not name_of(path).startswith(GIVES_NAMES)], ids=name_of
)
def test_no_kind_is_asked_for_by_its_name(path):
    assert not set(kinds_asked_in(tree_of(path))) & set(KINDS), "ask its traits"


def test_the_rules_see_what_breaks_them(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.unit.test_structure.ROOT", tmp_path)
    (tmp_path / "plan.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from . import admin\n"
        "from .transitions import claims\n"
        "def f():\n    from .engine import operations as o\n    import sequences.worker.sweeper\n"
        "    Row.objects.filter(pk=1).update(a=1)\n    {}.update(a=1)\n"
    )
    path = Path("plan.py")
    assert dependencies(path) == {"transitions.claims", "engine.operations", "worker.sweeper"}
    assert list(writes_of(path)) == ["Row.objects.filter(pk=1).update"]
    (tmp_path / "names.py").write_text(
        "def _told(given):\n    for one in given:\n        found, row.kept = one, seen\n"
    )
    assert no_names_of(Path("names.py")) == {"told", "given", "one", "found", "kept"}
    (tmp_path / "kinds.py").write_text(
        'if row.kind == "event" or node.kind in ("undo", "each"): rows.filter(kind="item")\n'
        'StepRun(kind="step")\n'
    )
    assert sorted(kinds_asked_in(tree_of("kinds.py"))) == ["each", "event", "item", "undo"]
