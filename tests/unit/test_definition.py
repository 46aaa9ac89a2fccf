import asyncio
import copy
import inspect
import pickle
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property, partial, wraps
from operator import attrgetter
from types import SimpleNamespace

import dramatiq
import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.utils.translation import gettext_lazy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import default_middleware
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from sequences import (
    Sequence,
    SequenceMeta,
    chain,
    event,
    finish,
    job,
    on_cancel,
    on_end,
    on_failure,
    port,
    repeat,
    step,
    subsequence,
)
from sequences.definitions import option_types, registry
from sequences.definitions.steps import STEP_OPTIONS, Finish, Repeat, Step
from sequences.definitions.validation import META_OPTIONS, REFUSED_OPTIONS, own_options, refusal
from sequences.exceptions import InvalidDefinition, SequenceError
from sequences.sequence import RESERVED
from sequences.testing import build

HERE = f"{__name__}.Order"


@pytest.fixture(autouse=True)
def _isolated():
    with registry.isolated():
        yield


class Starter:
    """Stands for the engine, and notes what it was asked for."""

    def __init__(self):
        self.calls = []

    def bind(self, cls):
        pass

    def start(self, cls, data, **options):
        self.calls.append((cls, data, options))
        return cls._bind(run=SimpleNamespace(pk=1), data=dict(data or {}), created=True)

    def start_many(self, cls, iterable):
        return [self.start(cls, data) for data in iterable]

    def runs(self, cls):
        return f"the runs of {cls._definition.label}"


class Context:
    idempotency_key = "key-1"
    step_run = "the row"

    def __init__(self):
        self.seen = []

    def result(self, name, default):
        return f"result of {name}", default

    def results(self, name):
        return iter([f"results of {name}"])

    def outcomes(self, name):
        return iter([f"outcomes of {name}"])

    def progress(self, done, total, text):
        self.seen.append((done, total, text))


@pytest.fixture
def starter(monkeypatch):
    starter = Starter()
    monkeypatch.setattr(port, "_engine", starter)
    return starter


def declare(*bases, meta=None, **body):
    """A class Order of this module, with this body."""
    if meta is not None:
        body["Meta"] = type("Meta", (), meta)
    body |= {"__module__": __name__, "__qualname__": "Order"}
    return type(Sequence)("Order", bases or (Sequence,), body)


def refused(*bases, **body):
    with pytest.raises(InvalidDefinition) as caught:
        declare(*bases, **body)
    return str(caught.value)


def edges(cls):
    return {node.name: node.after for node in cls._definition.plan.nodes}


def work(sequence):
    return "worked"


def bound(cls, **options):
    """An instance inside of a step."""
    options = {"context": Context(), **options}
    return cls._bind(run=SimpleNamespace(pk=1), data={"n": 1}, **options)


# What a class declares.


def test_steps_run_in_the_order_in_which_they_are_declared():
    class Order(Sequence):
        @step
        def reserve(self): ...

        @step(max_retries=5)
        def pay(self): ...

        ship = step(work)

    assert edges(Order) == {"reserve": (), "pay": ("reserve",), "ship": ("pay",)}
    assert Order._definition.plan.chain is not None


def test_a_definition_says_what_the_class_is():
    found = declare(pay=step(work))._definition
    assert (found.label, found.app_label, found.verbose_name) == ("tests.Order", "tests", "order")
    assert (found.handoff, found.retention, found.redact) == ("broker", None, ())
    assert (found.defaults, found.aliases) == ({}, ())


def test_an_actor_is_named_for_the_sequence_and_the_step():
    plan = declare(pay=step(work), ship=step(work, queue_name="slow"))._definition.plan
    assert [(node.actor, node.queue) for node in plan.nodes] == [
        ("tests.Order.pay", "default"),
        ("tests.Order.ship", "slow"),
    ]


def test_steps_after_one_run_in_parallel_and_the_next_bare_step_joins_them():
    class Order(Sequence):
        @step
        def reserve(self): ...

        @step(after=reserve)
        def pay(self): ...

        @step(after="reserve")
        def pack(self): ...

        @step
        def ship(self): ...

    assert edges(Order)["pay"] == edges(Order)["pack"] == ("reserve",)
    assert edges(Order)["ship"] == ("pay", "pack")


def test_a_bare_step_waits_for_every_open_end_above_it():
    cls = declare(a=step(work), b=step(work, after=[]), c=step(work, after="a"), d=step(work))
    assert edges(cls) == {"a": (), "b": (), "c": ("a",), "d": ("b", "c")}


def test_after_takes_steps_and_names_in_any_iterable():
    first = step(work)
    for after in ([first, "b"], (first, "b"), iter(["b", first])):
        cls = declare(a=first, b=step(work, after=[]), c=step(work, after=after))
        assert edges(cls)["c"] == ("a", "b")


def test_a_step_is_found_by_its_name_and_its_old_names():
    found = declare(pay=step(work, aliases=["charge"]))._definition
    assert found.step("pay") is found.step("charge") is found.steps["pay"]
    assert found.step("bill") is None


def test_the_options_of_a_step_go_over_those_of_the_class():
    cls = declare(
        meta={"max_retries": 1, "queue_name": "slow", "atomic": False},
        pay=step(work, max_retries=5, atomic=True),
        ship=step(work),
    )
    pay, ship = cls._definition.steps.values()
    assert cls._definition.options(cls.pay) == {"max_retries": 5, "queue_name": "slow"}
    assert cls._definition.options(cls.ship) == {"max_retries": 1, "queue_name": "slow"}
    assert (pay.atomic, ship.atomic) == (True, False)
    assert cls.ship.atomic  # what is declared stays as it is


def test_a_step_knows_its_own_options():
    late = timedelta(days=3)
    found = declare(pay=step(work, delay=late, when=work))._definition.steps["pay"]
    assert (found.delay, found.when, found.atomic, found.options) == (late, work, True, {})


def test_the_options_of_middleware_may_stand_in_one_that_type_checkers_know():
    options = {"notify_shutdown": True, "max_retries": 1}
    cls = declare(
        pay=step(work, options=options, max_retries=2),
        ask=event(options=options),
        end=on_failure(options=options)(work),
    )
    steps = cls._definition.steps
    assert steps["pay"].options == {"notify_shutdown": True, "max_retries": 2}
    assert steps["ask"].options == steps["end"].options == options


@pytest.mark.parametrize("options", ["trace", None, {1: 2}])
def test_options_that_are_no_dict_of_names_are_refused(options):
    with pytest.raises(InvalidDefinition, match="It must be a dict with strings as keys"):
        declare(pay=step(work, options=options))


def keys_of(typed_dict):
    return typed_dict.__required_keys__ | typed_dict.__optional_keys__


def parameters_of(function):
    return set(inspect.signature(function).parameters)


OF_ACTORS = keys_of(option_types.ActorOptions) - {"options"}


def test_type_checkers_know_the_options_of_dramatiqs_actors():
    middleware = [*(kind() for kind in default_middleware), Results(backend=StubBackend())]
    names = {"queue_name", "priority"}.union(*(one.actor_options for one in middleware))
    assert {name for name in names if not refusal(name)} == OF_ACTORS


def test_type_checkers_know_our_options():
    pay = step(work)
    declared = declare(
        pay=pay,
        back=pay.undo(work),
        ask=event(),
        child=subsequence("shop.Child"),
        end=on_failure(work),
    )
    fan_out = keys_of(option_types.FanOutOptions) | {"each"}
    assert fan_out | {"args", "kwargs"} == STEP_OPTIONS | OF_ACTORS
    assert fan_out - {"allow_failed", "batch", "concurrency", "each"} == keys_of(
        option_types.StepOptions
    )
    assert keys_of(option_types.UndoOptions) - OF_ACTORS == own_options(declared.back)
    assert keys_of(option_types.ClosingOptions) - OF_ACTORS == own_options(declared.end)
    assert parameters_of(event) == own_options(declared.ask)
    assert parameters_of(subsequence) - {"sequence"} == own_options(declared.child)
    assert set(vars(SequenceMeta)["__annotations__"]) == META_OPTIONS | OF_ACTORS


def test_a_meta_may_inherit_from_the_class_that_lists_its_options():
    class Typed(Sequence):
        class Meta(SequenceMeta):
            app_label = "shop"
            max_retries = 3
            notify_shutdown = True

        pay = step(work, priority=1)

    assert Typed._definition.label == "shop.Typed"
    options = {"max_retries": 3, "notify_shutdown": True, "priority": 1}
    assert Typed._definition.steps["pay"].options == options


def test_a_label_for_people_is_made_of_the_name_or_given():
    cls = declare(send_mail=step(work), ship=step(work, label=gettext_lazy("Shipping")))
    assert cls.send_mail.label == "send mail"
    assert cls.ship.label == "Shipping"


def test_the_name_for_people_is_translated_when_it_is_read():
    cls = declare(meta={"verbose_name": gettext_lazy("Purchase")}, pay=step(work))
    assert cls._definition.verbose_name == "Purchase"


def test_a_retention_of_none_is_for_ever_and_none_at_all_leaves_it_to_the_settings():
    silent = declare(meta={"app_label": "shop"}, pay=step(work))._definition
    assert (silent.retention, silent.retention_failed) == (None, None)
    meta = {"app_label": "shop", "retention": timedelta(days=1), "retention_failed": None}
    said = declare(meta=meta, pay=step(work))._definition
    assert (said.retention, said.retention_failed) == (timedelta(days=1), timedelta.max)


def test_meta_sets_what_the_run_is_like():
    data = {"lines": []}
    found = declare(
        meta={
            "app_label": "shop",
            "aliases": "old.Purchase",
            "handoff": "direct",
            "retention": timedelta(days=30),
            "redact": ["card"],
            "defaults": data,
        },
        pay=step(work),
    )._definition
    data["lines"].append("changed later")
    assert (found.label, found.aliases, found.handoff) == (
        "shop.Order",
        ("old.Purchase",),
        "direct",
    )
    assert (found.retention, found.redact) == (timedelta(days=30), ("card",))
    assert found.defaults == {"lines": []}


# Inheritance.


class Parent(Sequence):
    class Meta:
        abstract = True
        max_retries = 1
        app_label = "parents"
        aliases = ["old.Parent"]
        verbose_name = "parent"
        redact = ["card"]

    reserve = step(work)
    pay = step(work)
    ship = step(work)


def test_a_subclass_has_its_parents_steps_and_then_its_own():
    cls = declare(Parent, thank=step(work))
    assert edges(cls) == {"reserve": (), "pay": ("reserve",), "ship": ("pay",), "thank": ("ship",)}


def test_a_step_that_is_declared_again_takes_the_place_of_the_parents():
    class Order(Parent):
        @step(max_retries=9)
        def pay(self):
            return super().pay(), "twice"

    assert list(edges(Order)) == ["reserve", "pay", "ship"]
    assert Order._definition.options(Order.pay)["max_retries"] == 9
    assert bound(Order).pay() == ("worked", "twice")


def test_a_step_that_is_none_is_removed_and_the_rest_closes_up():
    cls = declare(Parent, pay=None)
    assert edges(cls) == {"reserve": (), "ship": ("reserve",)}
    assert list(edges(declare(cls, pay=step(work)))) == ["reserve", "ship", "pay"]


def test_a_removed_step_that_another_one_waits_for_is_refused():
    base = declare(pay=step(work), ship=step(work, after="pay"))
    assert refused(base, pay=None) == (
        f"{HERE}.ship: after names 'pay', which is not a step of this sequence. Available: ship."
    )


def test_steps_of_several_parents_come_in_their_order():
    class Audit:  # a plain mixin
        audit = step(work)

    class Left(Parent):
        left = step(work)

    class Right(Parent):
        right = step(work)
        pay = step(work, max_retries=7)

    cls = declare(Left, Right, Audit, own=step(work))
    assert list(edges(cls)) == ["reserve", "pay", "ship", "left", "right", "audit", "own"]
    assert cls._definition.steps["pay"].options["max_retries"] == 7  # as Python resolves it


def test_options_are_inherited_and_what_names_a_class_is_not():
    found = declare(Parent)._definition
    assert (found.label, found.aliases, found.verbose_name) == ("tests.Order", (), "order")
    assert found.redact == ("card",)
    assert found.options(found.steps["pay"]) == {"max_retries": 1}


def test_a_meta_may_inherit_from_the_parents_meta():
    class Order(Parent):
        class Meta(Parent.Meta):
            queue_name = "slow"

    found = Order._definition
    assert (found.label, found.aliases, found.verbose_name) == ("tests.Order", (), "order")
    assert found.options(found.steps["pay"]) == {"max_retries": 1, "queue_name": "slow"}


def test_a_meta_may_inherit_from_a_class_of_options():
    class Common:
        app_label = "common"
        max_retries = 4

    class Order(Parent):
        class Meta(Common):
            pass

    assert Order._definition.label == "common.Order"
    assert Order._definition.steps["pay"].options == {"max_retries": 4}


def test_an_abstract_class_needs_no_steps_and_cannot_be_started(starter):
    class Base(Sequence):
        class Meta:
            abstract = True

    assert Base._definition is None
    for start in (Base, Base.start, lambda: Base.runs, Sequence):
        with pytest.raises(
            SequenceError, match=r"is abstract\. Start a subclass that is not abstract\."
        ):
            start()


# What a step calls.


def test_a_step_of_an_instance_is_the_method_that_it_decorates():
    class Order(Sequence):
        @step
        def pay(self):
            """Takes the money."""
            return self.data["n"]

        ship = step(partial(work))

    order = bound(Order)
    assert order.pay() == Order.pay.perform(order) == 1
    assert order.pay.__self__ is order
    assert order.ship() == "worked"
    assert Order.pay.__doc__ == "Takes the money."


def test_a_step_calls_perform_of_a_class():
    class Ship:
        def perform(self, sequence):
            return self, sequence

    cls = declare(ship=step(Ship))
    order = bound(cls)
    first, second = cls.ship.perform(order), order.ship()
    assert isinstance(first[0], Ship)
    assert first[0] is not second[0]
    assert first[1] is second[1] is order


@pytest.fixture
def actor():
    return partial(dramatiq.actor, broker=StubBroker())


def test_a_step_calls_an_actors_function_with_its_arguments(actor):
    @actor(queue_name="mails", priority=3, max_retries=8)
    def send(to, *, copy):
        return to, copy

    cls = declare(
        meta={"queue_name": "slow", "max_retries": 1},
        send=step(send, args=lambda self: [self.data["n"]], kwargs=lambda self: {"copy": 2}),
        again=step(send, args=work, max_retries=0),
    )
    assert bound(cls).send() == (1, 2)
    assert cls._definition.options(cls.send) == {
        "queue_name": "mails",
        "priority": 3,
        "max_retries": 8,
    }
    assert cls._definition.options(cls.again)["max_retries"] == 0


def test_an_actor_of_the_default_queue_takes_the_queue_of_the_class(actor):
    @actor
    def tick():
        return "tock"

    cls = declare(meta={"queue_name": "slow"}, tick=step(tick))
    assert bound(cls).tick() == "tock"
    assert cls._definition.plan.node("tick").queue == "slow"


def test_what_an_actor_has_and_a_step_cannot_have_is_refused(actor):
    @actor(on_success="other")
    def tick(): ...

    @actor
    def send(to): ...

    assert refused(tick=step(tick)).startswith(
        f"{HERE}.tick: the option on_success is not supported"
    )
    assert refused(send=step(send)) == (
        f"{HERE}.send: its actor requires arguments. Pass args= or kwargs=, functions of the "
        "sequence that return the arguments."
    )


# Starting, and what an instance is.


def test_a_call_of_the_class_starts_it_with_every_keyword_as_data(starter):
    cls = declare(pay=step(work))
    order = cls(name="Joel", key="k", self=1, cls=2, data=3)
    assert isinstance(order, cls)
    assert (order.run.pk, order.created, order.attempt) == (1, True, 0)
    assert starter.calls == [
        (
            cls,
            {"name": "Joel", "key": "k", "self": 1, "cls": 2, "data": 3},
            {},
        )
    ]


def test_start_takes_options_beside_the_data(starter):
    cls = declare(pay=step(work))
    cls.start({"n": 1}, key="k", unique="unfinished", delay=500)
    cls.start()
    assert starter.calls == [
        (cls, {"n": 1}, {"key": "k", "unique": "unfinished", "delay": 500}),
        (cls, None, {}),
    ]


def test_a_step_of_a_started_sequence_does_not_run_where_it_is_called(starter):
    calls = []

    class Order(Sequence):
        @step
        def pay(self):
            calls.append(self)

        approval = event()
        ship = step(work)

        @pay.undo
        def refund(self):
            calls.append(self)

    order = Order(n=1)
    for call in (order.pay, order.approval, order.ship, order.refund):
        with pytest.raises(SequenceError, match="is a step, and workers run steps"):
            call()
    for declared in (Order.pay, Order.approval, Order.ship, Order.refund):
        with pytest.raises(SequenceError, match=rf"\.Order\.{declared.name} is a step, and"):
            declared(order)
        with pytest.raises(SequenceError, match=f"^{declared.name} is a step, and workers"):
            declared()
    assert not calls


def test_a_step_of_a_base_class_can_be_called_by_the_step_that_replaces_it():
    class Order(Sequence):
        @step
        def pay(self):
            return [self.data["n"]]

    class Gift(Order):
        @step
        def pay(self):
            return [*Order.pay(self), "gift"]

    assert build(Gift, n=1).pay() == [1, "gift"]


@pytest.mark.parametrize("option", ["each", "when", "delay"])
def test_a_step_is_no_function_that_an_option_can_call(option):
    with pytest.raises(InvalidDefinition, match=option):
        declare(ship=step(lambda self, item=None: None, **{option: step(work)}))


def test_data_that_is_no_keywords_is_refused_with_the_way_out(starter):
    cls = declare(pay=step(work))
    with pytest.raises(SequenceError, match=r"takes its data as keyword arguments.*Order.start\("):
        cls({"n": 1})
    assert not starter.calls


@pytest.mark.parametrize("name", ["delay", "send", "apply_async", "enqueue"])
def test_the_calls_of_other_libraries_are_refused_with_the_way_out(name):
    cls = declare(pay=step(work))
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'. Start it with Order\("):
        getattr(cls, name)
    assert not hasattr(cls, name)
    with pytest.raises(AttributeError, match=r"'send'\. Workers run steps\. Start the sequence"):
        cls.pay.send(1)
    with pytest.raises(AttributeError, match=r"'missing'\.$"):
        _ = cls.missing


def test_many_are_started_in_one_call(starter):
    cls = declare(pay=step(work))
    assert [order.data for order in cls.start_many([{"n": 1}, {"n": 2}])] == [{"n": 1}, {"n": 2}]


def test_the_runs_are_those_of_the_class(starter):
    assert declare(pay=step(work)).runs == "the runs of tests.Order"


def test_asynchronous_code_starts_too(starter):
    cls = declare(pay=step(work))

    async def start():
        return await cls.astart({"n": 1}, key="k"), await cls.astart_many([{"n": 2}])

    one, many = asyncio.run(start())
    assert (one.data, many[0].data) == ({"n": 1}, {"n": 2})
    assert starter.calls[0][2]["key"] == "k"


def test_before_django_is_ready_nothing_starts(monkeypatch):
    monkeypatch.setattr(port, "_engine", None)
    with pytest.raises(SequenceError, match=r"cannot be used before Django is ready\. Add"):
        declare(pay=step(work))(name="Joel")


class Picklable(Parent):
    """Stands at the top of the module, for pickle."""


@pytest.mark.parametrize("duplicate", [copy.copy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_of_an_instance_starts_nothing(starter, duplicate):
    assert duplicate(bound(Picklable)).data == {"n": 1}
    assert starter.calls == []


def test_inside_a_step_the_engine_answers():
    context = Context()
    cls = declare(pay=step(work))
    order = bound(cls, attempt=2, context=context)
    assert (order.step_run, order.attempt, order.idempotency_key) == ("the row", 2, "key-1")
    assert order.result(cls.pay, 7) == order.result("pay", 7) == ("result of pay", 7)
    assert list(order.results(cls.pay)) == ["results of pay"]
    assert list(order.outcomes(cls.pay)) == ["outcomes of pay"]
    order.progress(1, 2, "half")
    order.progress()
    assert context.seen == [(1, 2, "half"), (None, None, "")]


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("step_run", lambda order: order.step_run),
        ("idempotency_key", lambda order: order.idempotency_key),
        ("result", lambda order: order.result("pay")),
        ("results", lambda order: order.results("pay")),
        ("outcomes", lambda order: order.outcomes("pay")),
        ("progress", lambda order: order.progress(1)),
    ],
)
def test_outside_a_step_what_belongs_to_one_is_an_error(name, ask):
    with pytest.raises(SequenceError) as caught:
        ask(bound(declare(pay=step(work)), context=None))
    assert str(caught.value) == f"{HERE}.{name} is only available inside a step."


def test_repeat_and_finish_are_values():
    assert repeat() == Repeat(timedelta())
    assert repeat(after=1500) == repeat(timedelta(seconds=1.5)) == Repeat(timedelta(seconds=1.5))
    assert finish() == Finish()


@pytest.mark.parametrize("after", ["soon", True, 1.5])
def test_repeat_after_something_else_is_an_error(after):
    with pytest.raises(
        SequenceError, match="must be a timedelta or a whole number of milliseconds"
    ):
        repeat(after=after)


def test_repeat_in_the_past_is_an_error():
    with pytest.raises(SequenceError, match=r"repeat\(after=-1\): it must not be negative\."):
        repeat(after=-1)


# What is refused, and how that is said.


def test_a_class_without_steps_is_refused():
    assert refused() == (
        f"{HERE}: it has no steps. Declare one with @step, or set abstract = True in its Meta."
    )


def test_a_name_that_is_declared_twice_is_refused():
    with pytest.raises(InvalidDefinition) as caught:

        class Order(Sequence):
            @step
            def pay(self): ...

            @step
            def pay(self): ...  # noqa: F811

    where = f"{__name__}.test_a_name_that_is_declared_twice_is_refused.<locals>.Order.pay"
    assert str(caught.value) == (
        f"{where}: the class declares this name twice. Rename one of them."
    )


@pytest.mark.parametrize(
    "name", ["data", "run", "runs", "start", "result", "created", "idempotency_key", "failure"]
)
def test_a_reserved_name_is_refused(name):
    message = "this name is reserved: every sequence has an attribute with this name. Rename it."
    assert refused(**{name: step(work)}) == f"{HERE}.{name}: {message}"
    assert refused(**{name: work, "pay": step(work)}) == f"{HERE}.{name}: {message}"


def test_a_reserved_name_from_a_mixin_is_refused():
    class Mixin:
        progress = step(work)

    assert "Order.progress: this name is reserved" in refused(Mixin, Sequence)


CLOSING = {"on_failure": on_failure, "on_cancel": on_cancel, "on_end": on_end}


@pytest.mark.parametrize("name", CLOSING)
def test_a_method_that_only_its_name_makes_a_handler_is_refused(name):
    said = (
        f"{HERE}.{name}: it has a handler's name but no decorator, so nothing would ever call it. "
        f"Put @{name} above it, or rename it."
    )
    assert refused(pay=step(work), **{name: lambda self: None}) == said
    assert refused(pay=step(work), **{name: classmethod(work)}) == said
    base = declare(pay=step(work), **{name: CLOSING[name](work)})
    assert refused(base, **{name: lambda self: None}) == said, "it would hide the one that it had"


@pytest.mark.parametrize("name", CLOSING)
@pytest.mark.parametrize(
    ("declaration", "noun"), [(lambda: step(work), "a plain step"), (event, "an event")]
)
def test_a_step_with_the_name_of_a_handler_is_refused(name, declaration, noun):
    assert refused(pay=step(work), **{name: declaration()}) == (
        f"{HERE}.{name}: it is {noun}, despite its name. Declare it with @{name}, or rename it."
    )


@pytest.mark.parametrize("name", CLOSING)
def test_a_handler_may_have_the_name_of_its_decorator(name):
    class Mixin:
        locals()[name] = lambda self: None

    assert "nothing would ever call it" in refused(Mixin, Sequence, pay=step(work))
    decorated = {name: CLOSING[name](work)}
    assert name in declare(Mixin, Sequence, pay=step(work), **decorated)._definition.steps
    assert declare(pay=step(work), **{name: None})._definition.steps.keys() == {"pay"}


@pytest.mark.parametrize("name", CLOSING)
def test_an_abstract_class_may_leave_the_handler_to_its_subclasses(name):
    body = {"pay": step(work), name: lambda self: None}
    base = declare(Meta=type("Meta", (), {"abstract": True}), **body)
    assert name in declare(base, **{name: CLOSING[name](work)})._definition.steps
    assert "nothing would ever call it" in refused(base)


def test_the_reserved_names_are_those_of_a_sequence():
    public = {name for name in (*dir(Sequence), *Sequence.__annotations__) if name[0] != "_"}
    assert public | {"failure"} == RESERVED


async def coroutine(self): ...


def generator(self):
    yield


async def both(self):
    yield


def forwarding(function):
    @wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


class Generator:
    perform = generator


class Callable:
    async def __call__(self, sequence): ...


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (forwarding(generator), "it is a generator function. Return a value instead of yielding."),
        (
            contextmanager(generator),
            "it is a generator function. Return a value instead of yielding.",
        ),
        (generator, "it is a generator function. Return a value instead of yielding."),
        (both, "it is a generator function. Return a value instead of yielding."),
        (Generator, "it is a generator function. Return a value instead of yielding."),
        (staticmethod(work), "a step cannot be a staticmethod. Make it a plain method."),
        (classmethod(work), "a step cannot be a classmethod. Make it a plain method."),
        (property(work), "a step cannot be a property. Make it a plain method."),
        (step(work), "@step is applied twice. Use @step only once."),
        ("work", "'work' is not callable. Pass a function, a method or a class to @step."),
        (dict, "dict has no perform method. Add perform(self, sequence)."),
        (
            lambda self, amount: 1,
            "it cannot be called with the sequence alone. Take only self, and read self.data.",
        ),
        (
            lambda: 1,
            "it cannot be called with the sequence alone. Take only self, and read self.data.",
        ),
    ],
)
def test_what_cannot_be_performed_is_refused(target, message):
    assert refused(pay=step(target)) == f"{HERE}.pay: {message}"


@pytest.mark.parametrize(
    "target",
    [coroutine, partial(coroutine), Callable(), forwarding(coroutine)],
    ids=["function", "partial", "object", "wrapper"],
)
def test_what_is_asynchronous_is_a_step(target):
    assert isinstance(declare(pay=step(target)).pay, Step)


@pytest.mark.parametrize("wrapper", [staticmethod, classmethod, property])
def test_a_step_inside_a_wrapper_is_refused(wrapper):
    assert refused(pay=wrapper(step(work))) == (
        f"{HERE}.pay: a step cannot be a {wrapper.__name__}. Make it a plain method."
    )


def test_a_wrapper_that_runs_the_coroutine_is_a_step():
    order = bound(declare(pay=step(async_to_sync(coroutine))))
    assert order.pay() is None


@pytest.mark.parametrize("option", ["when", "delay", "each"])
def test_a_function_of_the_sequence_cannot_be_a_coroutine_in_a_wrapper(option):
    assert f"{option} is <function coroutine" in refused(
        pay=step(lambda self, *item: 1, **{option: forwarding(coroutine)})
    )


# What looks like a step and is none


def without_wraps(function):
    def call(self):
        return function(self)

    return call


class Holder:
    def __init__(self, function):
        self.function = function


LOST = "it was declared as a step, but the class has no such step. Move @step above all other"


@pytest.mark.parametrize(
    "decorator",
    [forwarding, without_wraps, Holder, cached_property, property, staticmethod, transaction.atomic,
     lambda function: None, lambda function: [function]],
)  # fmt: skip
def test_a_decorator_above_step_is_refused_in_whatever_way_it_hides_it(decorator):
    with pytest.raises(InvalidDefinition) as caught:

        class Order(Sequence):
            @decorator
            @step
            def pay(self): ...

            @step
            def ship(self): ...

    assert "Order.pay: " in str(caught.value)
    assert LOST in str(caught.value)


def test_a_decorator_above_any_kind_of_step_is_refused():
    def on_failure_(above):
        class Order(Sequence):
            charge = step(work)

            @above
            @on_failure
            def pay(self): ...

    def with_options(above):
        class Order(Sequence):
            charge = step(work)

            @above
            @step(max_retries=1)
            def pay(self): ...

    def undo(above):
        class Order(Sequence):
            charge = step(work)

            @above
            @charge.undo
            def pay(self): ...

    def undo_with_options(above):
        class Order(Sequence):
            charge = step(work)

            @above
            @charge.undo(attempted=True)
            def pay(self): ...

    def an_event(above):
        class Order(Sequence):
            charge = step(work)
            pay = above(event())

    def a_subsequence(above):
        class Order(Sequence):
            charge = step(work)
            pay = above(subsequence("tests.Other"))

    for declared in (on_failure_, with_options, undo, undo_with_options, an_event, a_subsequence):
        with pytest.raises(InvalidDefinition, match="the class has no such step"):
            declared(forwarding)


@pytest.mark.parametrize("decorator", [forwarding, without_wraps])
def test_a_decorator_above_step_in_a_mixin_is_refused(decorator):
    class Payable:
        @decorator
        @step
        def pay(self): ...

    assert refused(Payable, Sequence, ship=step(work)).endswith(
        "Payable.pay: another decorator hides the step below it. Move @step above all other "
        "decorators."
    )


def test_a_decorator_between_two_steps_is_refused():
    assert refused(pay=step(forwarding(step(work)))) == (
        f"{HERE}.pay: @step is applied twice. Use @step only once."
    )


def test_a_decorator_around_a_step_of_the_parent_is_refused():
    assert "hides the step below it" in refused(Parent, again=forwarding(Parent.pay))


def test_a_method_may_use_the_step_of_another_class():
    other = Parent.pay

    class Order(Sequence):
        pay = step(work)

        def paid(self):
            return self.result(other)

    assert list(edges(Order)) == ["pay"]


def test_a_decorator_without_its_method_is_refused():
    mend = "the decorator has no method below it. Put it above a method."
    assert refused(pay=step(max_retries=3)) == f"{HERE}.pay: {mend}"
    assert refused(pay=on_failure(max_retries=3)) == f"{HERE}.pay: {mend}"


@pytest.mark.parametrize("function", [step, event, subsequence, on_failure])
def test_the_function_that_declares_a_step_is_refused_in_place_of_one(function):
    name = function.__name__
    assert refused(pay=function, ship=step(work)) == (
        f"{HERE}.pay: {name}() is assigned without being called. Call it: {name}(…)."
    )


def test_an_actor_a_job_and_a_chain_in_a_class_are_refused(actor):
    registered = job("definition.pay")(work)
    for value in (actor(work), registered, registered.with_(), chain(registered)):
        assert "is not a step. Make it a step with step(…)" in refused(pay=value, ship=step(work))


def test_a_step_cannot_be_added_to_a_class_that_is_there():
    cls = declare(pay=step(work))
    with pytest.raises(InvalidDefinition, match="a step cannot be added to an existing class"):
        cls.ship = step(work)
    declared = cls.pay
    cls.pay = None  # as a test's mock does
    cls.pay = declared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atomic": 0}, "atomic is 0. It must be True or False."),
        ({"delay": -1}, "delay is -1. It must be a timedelta, a whole number of"),
        ({"delay": True}, "delay is True. It must be a timedelta"),
        ({"delay": coroutine}, "delay is <function coroutine"),
        ({"when": True}, "when is True. It must be a function of the sequence."),
        ({"aliases": [3]}, "aliases is (3,). It must be a list of names."),
        ({"label": 3}, "label is 3. It must be a string."),
        ({"queue_name": "my queue"}, "queue_name is 'my queue'. It must be a name of letters"),
        ({"priority": "high"}, "priority is 'high'. It must be an int."),
        (
            {"args": work},
            "args and kwargs are only for steps that run a Dramatiq actor or a Django task.",
        ),
        ({"after": [3]}, "after contains 3, which is not a step. Pass steps or their names."),
        ({"after": work}, "which is not a step. Pass steps or their names."),
        ({"after": step(work)}, "after contains <step work>, which no class declares. Declare it"),
        (
            {"after": "shipp"},
            "after names 'shipp', which is not a step of this sequence. Did you mean 'ship'?",
        ),
        (
            {"after": "ship"},
            "after names 'ship', which is circular or declared further down. A step",
        ),
    ],
)
def test_an_option_that_is_wrong_is_refused(options, message):
    found = refused(pay=step(work, **options), ship=step(work))
    assert found.startswith(f"{HERE}.pay: ")
    assert message in found


NO_ARGUMENTS = "is a function with the wrong arguments. It must take"


def of_nothing(): ...


def of_sequence(sequence): ...


def of_item(sequence, item): ...


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (lambda: step(work, when=lambda: True), f"when {NO_ARGUMENTS} the sequence."),
        (lambda: step(work, when=of_item), f"when {NO_ARGUMENTS} the sequence."),
        (lambda: step(work, delay=lambda *, wait: 1), f"delay {NO_ARGUMENTS} the sequence."),
        (lambda: step(of_item, each=of_nothing), f"each {NO_ARGUMENTS} the sequence."),
        (
            lambda: step(work, retry_when=of_sequence),
            f"retry_when {NO_ARGUMENTS} the number of retries and the exception.",
        ),
        (
            lambda: subsequence("shop.Other", data=of_nothing),
            f"data {NO_ARGUMENTS} the sequence.",
        ),
        (
            lambda: subsequence("shop.Other", each="orders", data=of_sequence),
            f"data {NO_ARGUMENTS} the sequence and the item.",
        ),
        (
            lambda: subsequence("shop.Other", subject=lambda: None),
            f"subject {NO_ARGUMENTS} the sequence.",
        ),
        (lambda: event(when=lambda: True), f"when {NO_ARGUMENTS} the sequence."),
        (lambda: on_end(work, when=lambda: True), f"when {NO_ARGUMENTS} the sequence."),
    ],
)
def test_a_function_that_does_not_take_its_arguments_is_refused(declaration, message):
    said = refused(ship=step(work), pay=declaration())
    assert said.startswith(f"{HERE}.pay: ")
    assert message in said


@pytest.mark.parametrize("option", ["args", "kwargs"])
def test_functions_for_an_actor_take_the_item_that_it_gets(option):
    broker = StubBroker(middleware=[])
    actor = dramatiq.actor(lambda value: None, actor_name="charge", broker=broker)
    message = f"pay: {option} {NO_ARGUMENTS} the sequence"
    assert f"{message}." in refused(pay=step(actor, **{option: of_nothing}))
    assert f"{message} and the item." in refused(
        pay=step(actor, each="orders", **{option: of_sequence})
    )


@pytest.mark.parametrize(
    "function",
    [
        of_sequence,
        lambda sequence, item=None: True,
        lambda *arguments: True,
        partial(of_item, item=None),
        attrgetter("data.is_big"),
        bool,
    ],
)
def test_a_function_is_taken_unless_its_signature_shows_that_it_cannot_be_called(function):
    assert declare(pay=step(work, when=function))._definition.steps["pay"].when is function


def test_a_default_that_does_not_take_the_sequence_is_refused():
    assert f"pay: when {NO_ARGUMENTS}" in refused(pay=step(work), meta={"when": lambda: True})


@pytest.mark.parametrize("name", [*REFUSED_OPTIONS, "pipe_target", "pipe_ignore"])
def test_an_option_that_would_break_a_promise_is_refused_with_the_reason(name):
    for where, body in [
        ("pay", {"pay": step(work, **{name: "x"})}),
        ("Meta", {"pay": step(work), "meta": {name: "x"}}),
    ]:
        assert refused(**body).startswith(f"{HERE}.{where}: the option {name} is not supported: ")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"abstract": 1}, "abstract is 1. It must be True or False."),
        ({"app_label": "my.app"}, "app_label is 'my.app'. It must be an app label."),
        ({"aliases": ["Old"]}, "aliases is ['Old']. It must be a list of labels, such as"),
        ({"verbose_name": 3}, "verbose_name is 3. It must be a string."),
        ({"handoff": "fast"}, 'handoff is \'fast\'. It must be "broker" or "direct".'),
        (
            {"retention": 30},
            "retention is 30. It must be a timedelta, or None to keep runs forever.",
        ),
        ({"redact": [3]}, "redact is [3]. It must be a list of names."),
        ({"defaults": {1: 2}}, "defaults is {1: 2}. It must be a dict with strings as keys."),
        ({"atomic": "no"}, "atomic is 'no'. It must be True or False."),
        ({"queue_name": ""}, "queue_name is ''. It must be a name of letters"),
        (
            {"after": "pay"},
            "after can only be set on a step, not for all steps. Set it on the step.",
        ),
    ],
)
def test_an_option_of_meta_that_is_wrong_is_refused(meta, message):
    found = refused(pay=step(work), meta=meta)
    assert found.startswith(f"{HERE}.Meta: ")
    assert message in found


def test_a_meta_that_is_no_class_is_refused():
    assert refused(pay=step(work), Meta={"abstract": True}) == (
        f"{HERE}: its Meta is not a class. Write class Meta: and put the options in it."
    )


@pytest.mark.parametrize("aliases", [["pay"], ["ship"], ["old", "old"], ["charge"]])
def test_an_alias_that_is_taken_is_refused(aliases):
    body = {"ship": step(work, aliases=["charge"]), "pay": step(work, aliases=aliases)}
    assert refused(**body) == (
        f"{HERE}.pay: its alias {aliases[-1]!r} is also the name or an alias of another step."
        " Remove the alias."
    )


def test_a_step_under_two_names_is_refused():
    pay = step(work)
    assert refused(pay=pay, again=pay) == (
        f"{HERE}.again: it is the same step object as 'pay'. Declare a separate step with step(…)."
    )


def test_a_name_that_does_not_fit_is_refused():
    assert refused(_pay=step(work)) == (
        f"{HERE}._pay: step names must not start with an underscore. Rename it."
    )
    name = "p" * 101
    assert refused(**{name: step(work)}) == (
        f"{HERE}.{name}: its name is longer than 100 characters. Shorten it."
    )
    assert "its label is longer than 200" in refused(pay=step(work), meta={"app_label": "a" * 200})


@pytest.mark.parametrize("value", [work, 3, "pay", property(work)])
def test_a_step_replaced_by_something_else_is_refused(value):
    assert refused(Parent, pay=value) == (
        f"{HERE}.pay: it overrides a step with something that is not a step."
        " Decorate it with @step, or set it to None to remove the step."
    )


@pytest.mark.parametrize("value", [3, "pay", {"max_retries": 3}])
def test_an_option_without_its_name_is_refused(value):
    with pytest.raises(
        InvalidDefinition, match=r"decorator of work: .* is not callable\. Write @step"
    ):
        step(value)(work)


@pytest.mark.parametrize("name", ["meta", "META", "Config"])
def test_options_in_a_class_of_another_name_are_refused(name):
    body = {"pay": step(work), name: type(name, (), {"redact": ["token"]})}
    with pytest.raises(InvalidDefinition, match=f"its class {name} has no effect. Put the options"):
        type(Sequence)("Order", (Sequence,), body)


def test_a_class_of_the_projects_own_may_be_called_config():
    declare(pay=step(work), Config=type("Config", (), {"url": "https://bank.example"}))


@pytest.mark.parametrize("name", ["__init__", "__new__"])
def test_a_constructor_of_ones_own_is_refused(name):
    assert refused(pay=step(work), **{name: lambda self: None}) == (
        f"{HERE}: it defines {name}, but instances of a sequence are created by the engine, not "
        "by your code. Put what the steps need into data."
    )


def test_an_error_in_an_abstract_class_is_found_at_once():
    assert "it is a generator function" in refused(pay=step(generator), meta={"abstract": True})
