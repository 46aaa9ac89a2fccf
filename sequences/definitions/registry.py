"""Every sequence by its name. All code that reads a name from the database or a broker uses
this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from ..exceptions import InvalidDefinition, UnknownSequence, did_you_mean
from ..port import get_engine, has_engine
from .steps import Event

if TYPE_CHECKING:
    from .definition import Definition
    from .limits import Limit
    from .plan import Plan

# A subclass of `Sequence`, which is in a higher layer.
SequenceClass: TypeAlias = type[Any]
Saved: TypeAlias = tuple[dict[str, SequenceClass], dict[str, SequenceClass]]

#: The sequence behind all runs with an inline definition, which is stored with their plan.
INLINE_LABEL = "job_sequences.Flow"

_by_label: dict[str, SequenceClass] = {}
_by_alias: dict[str, SequenceClass] = {}
_of_jobs: dict[str, Limit] = {}
_deferred: list[Callable[[], None]] = []


def get(label: str) -> SequenceClass:
    """Return the sequence with that label (``"shop.Order"``) or alias. Raises `UnknownSequence`."""
    if cls := find(label):
        return cls
    raise UnknownSequence(name=label, hint=did_you_mean(label, [*_by_label, *_by_alias]))


def find(label: str) -> SequenceClass | None:
    """The sequence with that label or alias, if there is one.

    For runs with an inline definition, the label is that of their class followed by their own name.
    """
    if is_inline(label):
        label = INLINE_LABEL
    return _by_label.get(label) or _by_alias.get(label)


def is_inline(label: str) -> bool:
    """Whether the definition of this run is stored with its plan instead of declared in code."""
    return label.startswith(f"{INLINE_LABEL}:")


def definition_of(label: str) -> Definition | None:
    """The definition of the sequence with that label or alias, if there is one."""
    cls = find(label)
    return None if cls is None else cls._definition


def definition_for(label: str, plan: Plan) -> Definition | None:
    """The definition of a run with this label and plan, if this code has it."""
    cls = find(label)
    if cls is None or not is_inline(label):
        return None if cls is None else cls._definition
    inline: Definition | None = cls._definition_for(label, plan)
    return inline


def definition(label: str, plan: Plan) -> Definition:
    """The same; raises `UnknownSequence` if there is none."""
    if (declared := definition_for(label, plan)) is not None:
        return declared
    raise UnknownSequence(name=label, hint=did_you_mean(label, [*_by_label, *_by_alias]))


def hidden_by(label: str) -> tuple[str, ...]:
    """The paths that the sequence with that label redacts. If the class is gone: everything."""
    definition = definition_of(label)
    return ("*",) if definition is None else hidden(definition)


def hidden(definition: Definition, above: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The paths that it redacts in `data`, including those in the copies of what came from
    outside: deliveries, and the data of its children."""
    own = definition.redact
    patterns = list(own)
    above |= {definition.label}
    for step in definition.steps.values():
        child = getattr(step, "sequence", None)
        if child is None and not isinstance(step, Event):
            continue
        # `*` alone hides the whole copy.
        copied = [pattern for pattern in own if pattern != "*"]
        if child is not None:
            copied += _hidden_below(child, above)
        names = (step.name, *step.aliases)
        patterns += [f"{name}.{pattern}" for name in names for pattern in copied]
    return tuple(dict.fromkeys(patterns))


def _hidden_below(child: SequenceClass | str, above: frozenset[str]) -> tuple[str, ...]:
    below = definition_of(child) if isinstance(child, str) else child._definition
    if below is None:
        return ("*",)
    return () if below.label in above else hidden(below, above)


def names_of(label: str) -> list[str]:
    """The names under which runs of this sequence are stored: its label and its aliases."""
    definition = None if is_inline(label) else definition_of(label)
    return [label] if definition is None else [definition.label, *definition.aliases]


def all() -> list[SequenceClass]:  # noqa: A001 (read as registry.all)
    """Every registered sequence, by label."""
    return [_by_label[label] for label in sorted(_by_label)]


def every_limit() -> list[Limit]:
    """All limits declared by jobs and sequences in this code."""
    declared = [limit for cls in all() for limit in _definition(cls).all_limits]
    return [*_of_jobs.values(), *declared]


def limits() -> dict[str, Limit]:
    """All limits by name."""
    return {limit.name: limit for limit in every_limit()}


def note_limits(limits: Iterable[Limit]) -> None:
    """Add the limits of a job, which no class declares."""
    _of_jobs.update({limit.name: limit for limit in limits})


def autodiscover() -> None:
    """Import the module ``sequences`` of every installed app, as the admin does with ``admin``."""
    while _deferred:
        _deferred.pop(0)()
    autodiscover_modules("sequences")


def when_apps_are_loaded(act: Callable[[], None]) -> None:
    """Call ``act`` now, or in `autodiscover` if Django has not loaded its apps yet."""
    if apps.apps_ready:
        act()
    else:
        _deferred.append(act)


def register(cls: SequenceClass) -> None:
    """Register a sequence. Raises `InvalidDefinition` if another one has its name."""
    definition = _definition(cls)
    for name in (definition.label, *definition.aliases):
        _check_free(cls, name)
    before = _saved()
    _forget(definition.label)
    _by_label[definition.label] = cls
    _by_alias.update(dict.fromkeys(definition.aliases, cls))
    try:
        if has_engine():  # until then, `apps.ready` binds all registered ones
            get_engine().bind(cls)
    except BaseException:
        _restore(before)  # a class that the engine rejects must not keep its name
        raise


@contextmanager
def isolated() -> Iterator[None]:
    """Forget everything that is registered inside the block."""
    before, of_jobs = _saved(), dict(_of_jobs)
    try:
        yield
    finally:
        _restore(before)
        _of_jobs.clear()
        _of_jobs.update(of_jobs)


def _saved() -> Saved:
    return dict(_by_label), dict(_by_alias)


def _restore(before: Saved) -> None:
    for registered, saved in zip((_by_label, _by_alias), before, strict=True):
        registered.clear()
        registered.update(saved)


def _check_free(cls: SequenceClass, name: str) -> None:
    other = find(name)
    if other is None or _is_same_class(cls, other):
        return
    raise InvalidDefinition(
        where=_path(cls),
        problem=f"{name!r} is already the label or an alias of {_path(other)}",
        hint="Rename one of the classes, or set a different app_label in its Meta.",
    )


def _is_same_class(cls: SequenceClass, other: SequenceClass) -> bool:
    # A reloaded module declares its classes again, and the new ones replace the old ones.
    return _path(cls) == _path(other)


def _forget(label: str) -> None:
    if old := _by_label.pop(label, None):
        for alias in _definition(old).aliases:
            _by_alias.pop(alias, None)


def _definition(cls: SequenceClass) -> Definition:
    definition: Definition | None = cls._definition
    if definition is None:
        raise InvalidDefinition(
            where=_path(cls),
            problem="it is abstract",
            hint="Register a concrete subclass.",
        )
    return definition


def _path(cls: SequenceClass) -> str:
    return vars(cls).get("_file") or f"{cls.__module__}.{cls.__qualname__}"
