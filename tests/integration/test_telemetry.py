"""One trace for a run, whoever performs its steps; and nothing at all where nobody asks for it."""

import subprocess
import sys
from contextvars import Context

import dramatiq
import pytest
from django.core import checks
from django.db import connection
from django.test.utils import CaptureQueriesContext
from dramatiq.middleware import Shutdown, SkipMessage, TimeLimitExceeded
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags

from sequences import Sequence, repeat, step, subsequence
from sequences.engine import tracing
from sequences.engine.executor import StepExecution
from sequences.models import SequenceRun
from sequences.testing import run_sequence as run_all
from tests.engine import claim, fresh, messages, perform, row
from tests.integration.test_middleware import deliver
from tests.sagas import nothing, saga

pytestmark = pytest.mark.django_db(transaction=True)


class Sampler(ParentBased):
    """Takes all, unless a test says otherwise."""

    def __init__(self):
        super().__init__(self)
        self.chosen = ALWAYS_ON

    def should_sample(self, parent_context, *args, **kwargs):
        if trace.get_current_span(parent_context).get_span_context().is_valid:
            return super().should_sample(parent_context, *args, **kwargs)
        return self.chosen.should_sample(parent_context, *args, **kwargs)


SAMPLER = Sampler()


class Breaking(SpanProcessor):
    """Raises where a test says so."""

    at = ""

    def on_start(self, span, parent_context=None):
        self._break("start")

    def on_end(self, span):
        self._break("end")

    def _break(self, at):
        if at == self.at:
            raise ZeroDivisionError("in a processor")


BREAKING = Breaking()


@pytest.fixture(scope="module")
def exporter():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=SAMPLER)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(BREAKING)
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(autouse=True)
def spans(exporter, settings):
    """The spans that have ended, by their names."""
    settings.SEQUENCES = {"TELEMETRY": True}
    exporter.clear()
    return Spans(exporter)


class Spans:
    def __init__(self, exporter):
        self.exporter = exporter

    def __iter__(self):
        return iter(self.exporter.get_finished_spans())

    @property
    def names(self):
        return [span.name for span in self]

    def __getitem__(self, name):
        (found,) = [span for span in self if span.name == name]
        return found

    def parents(self):
        """What each stands below, by name."""
        names = {span.context.span_id: span.name for span in self}
        return {span.name: span.parent and names[span.parent.span_id] for span in self}

    @property
    def traces(self):
        return {span.context.trace_id for span in self}


def two_steps(**meta):
    class Contact(Sequence):
        Meta = type("Meta", (), {"app_label": "shop", **meta})

        @step
        def create(self):
            with theirs.start_as_current_span("INSERT"):
                self.data["created"] = True

        @step
        def mail(self):
            pass

    return Contact


theirs = trace.get_tracer("theirs")


def in_another_worker(act, *args):
    """Nothing of this thread's context is there."""
    return Context().run(act, *args)


def work():
    """A worker takes the next message."""
    message = messages()[0]
    dramatiq.get_broker().queues["default"].get_nowait()
    return in_another_worker(deliver, message)


def test_one_trace_leads_from_a_request_through_the_steps_in_all_workers(spans):
    cls = two_steps()
    with theirs.start_as_current_span("POST /contact"):
        run = cls.start().run
    work()
    work()
    assert fresh(run).status == "succeeded"
    assert len(spans.traces) == 1
    assert spans.parents() == {
        "POST /contact": None,
        "start shop.Contact": "POST /contact",
        "shop.Contact.create": "start shop.Contact",
        "INSERT": "shop.Contact.create",
        "shop.Contact.mail": "start shop.Contact",
    }


def test_a_start_outside_of_any_trace_begins_one_and_its_insert_stores_it(spans):
    cls = two_steps()
    cls.start()
    with CaptureQueriesContext(connection) as queries:
        run = cls.start().run
    start = list(spans)[-1]
    context = start.context
    assert start.parent is None
    ids = f"{context.trace_id:032x}-{context.span_id:016x}"
    assert fresh(run).traceparent == f"00-{ids}-{context.trace_flags:02x}"
    assert not [query for query in queries if query["sql"].startswith("UPDATE")]


def test_spans_say_what_they_are_of(spans):
    run = two_steps().start().run
    message = messages()[0]
    work()
    start, create = spans["start shop.Contact"], spans["shop.Contact.create"]
    assert (start.kind, create.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(start.attributes) == {
        "sequences.sequence": "shop.Contact",
        "sequences.run": str(run.pk),
        "messaging.system": "dramatiq",
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.destination.name": "default",
    }
    assert dict(create.attributes) == {
        "sequences.sequence": "shop.Contact",
        "sequences.run": str(run.pk),
        "sequences.step": "create",
        "sequences.attempt": 1,
        "sequences.outcome": "succeeded",
        "messaging.system": "dramatiq",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "default",
        "messaging.message.id": message.message_id,
    }
    assert create.status.status_code is StatusCode.UNSET


def test_each_attempt_and_each_item_has_a_span_of_its_own(spans):
    class Fans(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="numbers")
        def pack(self, number):
            if self.attempt == 1 and number == 2:
                raise ValueError

    run_all(Fans, numbers=[1, 2])
    names = ("sequences.item", "sequences.attempt", "sequences.outcome")
    told = [tuple(span.attributes.get(name) for name in names) for span in spans]
    assert told[1:] == [
        (None, 1, "waits"),
        (0, 1, "succeeded"),
        (1, 1, "failed"),
        (1, 2, "succeeded"),
        (None, 1, "succeeded"),
    ]
    assert len(spans.traces) == 1


def test_an_error_is_recorded_without_secrets(spans):
    class Pays(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["card"]
            max_retries = 0

        @step
        def pay(self):
            raise ValueError(f"{self.data['card']} was refused")

    run_all(Pays, card="4111-1111")
    span = spans["shop.Pays.pay"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "ValueError: *** was refused"
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes["exception.message"] == "*** was refused"
    assert event.attributes["exception.stacktrace"].endswith("ValueError: *** was refused\n")
    assert span.attributes["error.type"] == "ValueError"
    assert "4111" not in span.to_json()


def test_no_part_of_a_secret_is_left_where_an_error_is_cut(spans):
    class Pays(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["card"]
            max_retries = 0

        @step
        def pay(self):
            card = self.data["card"]
            raise ValueError(f"{'x' * 4990}{card}{'y' * 15_000}{card}{'z' * 19_970}")

    run_all(Pays, card="ghij-klmn-opqr-stuv")
    text = spans["shop.Pays.pay"].to_json()
    assert not [part for part in ("ghij", "klmn", "opqr", "stuv", "uvzz") if part in text]


def test_children_go_on_with_their_parents_trace(spans):
    child = two_steps()

    class Parent(Sequence):
        class Meta:
            app_label = "shop"

        contact = subsequence(child)

    run_all(Parent)
    parents = [span.name for span in spans if span.name == "shop.Parent.contact"]
    assert len(parents) == 2  # it starts its child, and later gathers what that has left
    first = next(span for span in spans if span.name == "shop.Parent.contact")
    assert spans["start shop.Contact"].parent.span_id == first.context.span_id
    start = spans["start shop.Contact"].context.span_id
    assert spans["shop.Contact.mail"].parent.span_id == start
    assert len(spans.traces) == 1
    assert first.attributes["sequences.outcome"] == "waits"


def test_undo_and_on_failure_have_spans_too(spans):
    def twice(sequence):
        return None if sequence.step_run.repeats else repeat()

    run_all(saga(charge=twice, tell=nothing))
    assert [name.removeprefix("shop.Saga.") for name in spans.names][1:] == [
        "charge",
        "charge",
        "ship",
        "refund",
        "tell",
    ]
    assert len(spans.traces) == 1
    assert [span.attributes.get("sequences.outcome") for span in spans][1] == "repeats"


def test_a_direct_handoff_nests_no_span_in_that_of_the_step_before(spans):
    two_steps(handoff="direct").start()
    work()
    assert spans.parents()["shop.Contact.mail"] == "start shop.Contact"
    create, mail = spans["shop.Contact.create"], spans["shop.Contact.mail"]
    assert create.end_time <= mail.start_time


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [(Shutdown, "interrupted", StatusCode.UNSET), (TimeLimitExceeded, "failed", StatusCode.ERROR)],
)
def test_an_interrupt_ends_the_span_and_is_said(spans, error, outcome, status):
    class Long(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            raise error("now")

    Long.start()
    work()
    span = spans["shop.Long.one"]
    assert (span.attributes["sequences.outcome"], span.status.status_code) == (outcome, status)
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_lost_claim_ends_the_span_and_is_said(spans):
    run = two_steps().start().run
    held = claim(run, "create")
    run.cancel()
    with pytest.raises(SkipMessage):
        perform(held)
    span = spans["shop.Contact.create"]
    assert span.attributes["sequences.outcome"] == "lost"
    assert "lost its claim while it was running; nothing was stored" in span.status.description


def test_a_message_for_nothing_makes_no_span(spans):
    run = two_steps().start().run
    run.cancel()
    with pytest.raises(SkipMessage):
        StepExecution(row(run, "create").pk, 0, "default").live()
    assert spans.names == ["start shop.Contact"]


@pytest.mark.parametrize("stored", ["", "nonsense"])
def test_a_run_whose_start_nobody_has_traced_has_a_trace_by_its_id(spans, stored):
    run = two_steps().start().run
    SequenceRun.objects.filter(pk=run.pk).update(traceparent=stored)
    spans.exporter.clear()
    with theirs.start_as_current_span("something else"):
        for name in ("create", "mail"):
            perform(claim(run, name))
    steps = [span for span in spans if span.name.startswith("shop.")]
    assert {span.context.trace_id for span in steps} == {run.pk.int}
    assert len({span.parent.span_id for span in steps}) == 1


def test_what_is_not_sampled_at_the_start_is_not_sampled_later(spans, monkeypatch):
    monkeypatch.setattr(SAMPLER, "chosen", ALWAYS_OFF)
    run = two_steps().start().run
    assert not int(fresh(run).traceparent[-2:], 16) & TraceFlags.SAMPLED
    monkeypatch.setattr(SAMPLER, "chosen", ALWAYS_ON)
    work()
    assert spans.names == []


def test_a_start_that_finds_its_run_says_which(spans):
    cls = two_steps()
    run = cls.start({}, key="a").run
    cls.start({}, key="a")
    cls.start_many([({}, {"key": "a"}), {}])
    found = [dict(span.attributes) for span in spans if "sequences.created" in span.attributes]
    assert [(one["sequences.run"], one["sequences.created"]) for one in found] == [
        (str(run.pk), False)
    ] * 2
    assert spans.names == ["start shop.Contact"] * 4


def test_each_of_many_starts_has_a_span_and_stores_it(spans):
    runs = [one.run for one in two_steps().start_many([{}, {}])]
    stored = [fresh(run).traceparent.split("-")[2] for run in runs]
    assert stored == [f"{span.context.span_id:016x}" for span in spans]


def test_a_start_that_fails_says_so_without_values(spans, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("4111")

    monkeypatch.setattr("sequences.transitions.starts.start", broken)
    with pytest.raises(ZeroDivisionError):
        two_steps().start()
    span = spans["start shop.Contact"]
    assert span.status.description == "The run was not started."
    assert span.attributes["error.type"] == "ZeroDivisionError"
    assert "4111" not in span.to_json()


@pytest.mark.parametrize("at", ["start", "end"])
def test_a_processor_that_raises_is_logged_and_fails_no_start_and_no_step(
    spans, monkeypatch, caplog, at
):
    class Contact(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 1

        @step
        def create(self):
            if self.attempt == 1:
                raise ValueError

        @step
        def mail(self):
            pass

    monkeypatch.setattr(BREAKING, "at", at)
    run = run_all(Contact).run
    assert run.status == "succeeded"
    assert [one.error for one in run.failures.all()] == ["ValueError"]
    lost = [one for one in caplog.records if "OpenTelemetry failed" in one.getMessage()]
    assert len(lost) == 4
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_what_cannot_be_told_of_an_error_takes_no_interrupt_away(spans, monkeypatch):
    class Long(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            raise Shutdown("now")

    monkeypatch.setattr("sequences.engine.telemetry._tell", None)
    run = Long.start().run
    work()
    assert row(run, "one").status == "queued"  # given back, and not left to its lease


# --- what it costs


def test_it_sends_no_statement_more_than_without(spans, settings):
    def queries():
        run = two_steps().start().run
        pk = row(run, "create").pk
        with CaptureQueriesContext(connection) as captured:
            StepExecution(pk, 0, "default").live()
        return [query["sql"].split()[0] for query in captured]

    queries()
    traced = queries()
    settings.SEQUENCES = {"TELEMETRY": False}
    assert queries() == traced


def test_without_the_setting_nothing_is_traced(spans, settings, monkeypatch):
    settings.SEQUENCES = {}
    monkeypatch.setattr(tracing, "_load", None)
    run = run_all(two_steps()).run
    assert spans.names == ["INSERT"]
    assert fresh(run).traceparent == ""


def test_without_the_setting_nothing_of_it_is_imported():
    code = """
import sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django_dramatiq", "sequences"],
    DRAMATIQ_BROKER={"BROKER": "dramatiq.brokers.stub.StubBroker"},
)
import django
django.setup()
from sequences.engine import tracing
tracing.attempt(None), tracing.starting(None, [])
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def _not_installed(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sequences.engine.telemetry", raising=False)
    monkeypatch.delattr("sequences.engine.telemetry", raising=False)
    tracing._load.cache_clear()
    yield
    tracing._load.cache_clear()


@pytest.mark.usefixtures("_not_installed")
def test_without_the_package_runs_go_on_and_it_is_said_once(caplog):
    run = run_all(plain()).run
    assert run.status == "succeeded"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "nothing is traced" in caplog.text


def plain():
    class Plain(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def one(self):
            pass

    return Plain


def errors():
    found = checks.run_checks(tags=["sequences"])
    return [message for message in found if message.level >= checks.ERROR]


@pytest.mark.usefixtures("_not_installed")
def test_without_the_package_the_check_says_so():
    (error,) = errors()
    assert error.id == "sequences.E011"


def test_with_the_package_the_check_is_content(settings):
    assert errors() == []
    settings.SEQUENCES = {"TELEMETRY": "yes"}
    (error,) = errors()
    assert error.id == "sequences.E002"
    assert "must be True or False" in error.msg
