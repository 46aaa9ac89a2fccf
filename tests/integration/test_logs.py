"""What is logged in a step says which one it is, and keeps its secrets."""

import asyncio
import io
import json
import logging
import queue
import re
import subprocess
import sys
import threading
from datetime import UTC, date, datetime
from enum import Enum
from logging.handlers import QueueHandler
from pathlib import Path
from types import SimpleNamespace

import dramatiq
import pytest
from django.utils.module_loading import import_string
from dramatiq.middleware import TimeLimitExceeded
from dramatiq.worker import _WorkerThread

from sequences import Abort, Sequence, step
from sequences.engine import current
from sequences.engine.executor import StepExecution
from sequences.logs import StepFilter
from sequences.testing import run_sequence as run_all
from tests.engine import claim, messages, perform

pytestmark = pytest.mark.django_db(transaction=True)
theirs = logging.getLogger("shop")
OBSERVING = Path(__file__).parents[2] / "docs" / "observing.md"
#: The settings that the docs recommend.
LOGGING = re.search(r"```python\n# settings.py\n(LOGGING = .+?)```", OBSERVING.read_text(), re.S)[1]
FORMAT = "{sequence}|{run}|{step}|{item}|{attempt}|{message}"


@pytest.fixture
def log():
    """What a handler with the filter writes, of every logger."""
    with written(logging.Formatter(FORMAT, style="{"), StepFilter()) as stream:
        yield stream


@pytest.fixture
def json_log():
    """What a handler as the docs have it writes."""
    with written(json_formatter(), StepFilter()) as stream:
        yield stream


def json_formatter():
    exec(LOGGING, namespace := {})
    options = namespace["LOGGING"]["formatters"]["json"]
    return import_string(options.pop("()"))(**options)


class written:
    def __init__(self, formatter, *filters):
        self.handler = logging.StreamHandler(io.StringIO())
        self.handler.setFormatter(formatter)
        for one in filters:
            self.handler.addFilter(one)

    def __enter__(self):
        self.level = logging.root.level
        logging.root.setLevel(logging.INFO)
        logging.root.addHandler(self.handler)
        return self.handler.stream

    def __exit__(self, *_):
        logging.root.removeHandler(self.handler)
        logging.root.setLevel(self.level)


def lines(stream):
    return stream.getvalue().splitlines()


def objects(stream):
    return [json.loads(line) for line in lines(stream)]


def logging_step(act, **meta):
    """A sequence whose only step does this."""

    class Logs(Sequence):
        Meta = type("Meta", (), {"app_label": "shop", "max_retries": 0, **meta})

        @step
        def one(self):
            act(self)

    return Logs


def test_a_line_of_a_step_says_which_step_it_is_of(log):
    run = run_all(logging_step(lambda self: theirs.info("hello %s", "there"))).run
    assert lines(log) == [f"shop.Logs|{run.pk}|one||1|hello there"]


def test_a_line_outside_of_a_step_has_empty_fields(log):
    theirs.info("hello")
    assert lines(log) == ["|||||hello"]


def test_after_a_step_the_fields_are_empty_again(log):
    run_all(logging_step(lambda self: None))
    theirs.info("hello")
    assert lines(log) == ["|||||hello"]
    assert current.current_attempt() is None


def test_items_and_attempts_are_counted(log):
    class Fans(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="numbers")
        def pack(self, number):
            theirs.info("%s", number)
            if self.attempt == 1 and number == "b":
                raise ValueError

    run_all(Fans, numbers=["a", "b"])
    found = [line.split("|")[2:] for line in lines(log) if "shop.Fans|" in line]
    told = [one for one in found if one[-1] in ("a", "b")]
    assert told == [["pack", "0", "1", "a"], ["pack", "1", "1", "b"], ["pack", "1", "2", "b"]]


def test_what_a_step_awaits_or_does_in_another_context_is_of_the_step(log):
    async def work():
        theirs.info("in a loop")
        await asyncio.to_thread(theirs.info, "in its thread")

    run_all(logging_step(lambda self: asyncio.run(work())))
    assert [line.split("|")[2] for line in lines(log)] == ["one", "one"]


def test_another_thread_of_its_own_is_not_of_the_step(log):
    def act(self):
        thread = threading.Thread(target=theirs.info, args=["elsewhere"])
        thread.start()
        thread.join()

    run_all(logging_step(act))
    assert lines(log) == ["|||||elsewhere"]


def test_a_field_of_extra_stays_what_it_is(log):
    run_all(logging_step(lambda self: theirs.info("packed", extra={"item": "a spoon"})))
    assert lines(log)[0].split("|")[2:5] == ["one", "a spoon", "1"]


# --- the failure


def process_next():
    """Process the next message by Dramatiq's own code, which logs what becomes of it."""
    broker = dramatiq.get_broker()
    message = messages()[0]
    broker.queues["default"].get_nowait()

    class Consumer:
        def post_process_message(self, message):
            pass

    work = queue.PriorityQueue()
    work.put(None)
    thread = _WorkerThread(
        broker=broker, consumers={"default": Consumer()}, work_queue=work, worker_timeout=0
    )
    thread.process_message(dramatiq.MessageProxy(message))


def fails(self):
    self.data["later"] = "a new secret"
    raise ValueError(f"the card {self.data['card']} and {self.data['later']} are no good")


def test_what_dramatiq_logs_of_a_failed_step_is_of_the_step_and_keeps_its_secrets(log):
    run = logging_step(fails, redact=["card", "later"]).start({"card": "4111-1111"}).run
    process_next()
    text = log.getvalue()
    assert f"shop.Logs|{run.pk}|one||1|Failed to process message" in text
    assert "ValueError: the card *** and *** are no good" in text
    assert "4111-1111" not in text  # an id may have some of its digits
    assert "a new secret" not in text
    assert current.current_attempt() is None


def test_without_redact_nothing_is_hidden(log):
    logging_step(fails).start({"card": "4111-1111"})
    process_next()
    assert "the card 4111-1111 and a new secret are no good" in log.getvalue()


def test_a_retry_takes_no_traceback_to_the_broker():
    logging_step(fails, max_retries=3).start({"card": "4111-1111"})
    process_next()
    (retry,) = messages("default.DQ")
    assert retry.options["retries"] == 1
    assert "4111" not in str(retry.asdict())


def test_a_direct_handoff_logs_each_failure_as_that_of_its_own_step(log):
    class Direct(Sequence):
        class Meta:
            app_label = "shop"
            handoff = "direct"
            max_retries = 0

        @step
        def one(self):
            theirs.info("first")

        @step
        def two(self):
            raise ValueError

    Direct.start()
    process_next()
    told = [line.split("|")[2] for line in lines(log) if line.count("|") == 5]
    assert told[:2] == ["one", "two"]
    assert current.current_attempt() is None


# --- secrets


def act_on_card(log_it):
    return run_all(logging_step(log_it, redact=["card.*", "pin"]), card={"no": "4111"}, pin=2468)


@pytest.mark.parametrize(
    "log_it",
    [
        lambda self: theirs.info("is 4111"),
        lambda self: theirs.info("is %s and %d", self.data["card"], self.data["pin"]),
        lambda self: theirs.info("is %(no)s", self.data["card"]),
        lambda self: theirs.info("is", extra={"card": self.data["card"], "n": self.data["pin"]}),
        lambda self: theirs.info("is", stack_info="4111" != 2468),
    ],
    ids=["message", "arguments", "mapping", "extra", "stack"],
)
def test_secrets_are_hidden_wherever_they_stand_in_a_record(log_it, log, json_log):
    act_on_card(log_it)
    for stream in (log, json_log):
        assert "is" in stream.getvalue()
        assert "4111" not in stream.getvalue()
        assert "2468" not in stream.getvalue()


def test_a_logged_exception_keeps_its_secrets(log, json_log):
    def act(self):
        try:
            raise LookupError(f"nothing at {self.data['card']['no']}")
        except LookupError:
            theirs.exception("so it goes")

    act_on_card(act)
    assert "LookupError: nothing at ***" in log.getvalue()
    assert "LookupError: nothing at ***" in objects(json_log)[0]["exception"]
    assert "4111" not in log.getvalue() + json_log.getvalue()


def test_what_a_time_limit_strikes_in_is_stored_without_secrets():
    def act(self):
        self.data["later"] = "a new secret"
        try:
            raise LookupError(f"{self.data['card']} and {self.data['later']}")
        except LookupError as error:
            raise TimeLimitExceeded from error

    run = logging_step(act, redact=["card", "later"]).start({"card": "4111"}).run
    process_next()
    failure = run.failures.get()
    assert "LookupError: *** and ***" in failure.traceback
    assert "4111" not in failure.traceback


def test_a_line_with_wrong_arguments_lets_no_secret_out(log, capsys):
    act_on_card(lambda self: theirs.info("is", self.data["card"]["no"], 1))
    assert "is ('***', 1)" in log.getvalue()
    assert "4111" not in capsys.readouterr().err


def test_a_secret_item_is_hidden_too(log):
    class Fans(Sequence):
        class Meta:
            app_label = "shop"
            redact = ["pack", "cards"]

        @step(each="cards")
        def pack(self, card):
            theirs.info("is %s", card["no"])

    run_all(Fans, cards=[{"no": "4111"}])
    assert "|is ***" in log.getvalue()


def test_a_secret_that_the_step_has_removed_is_hidden_still(log):
    act_on_card(lambda self: theirs.info("is %s", self.data.pop("card")["no"]))
    assert lines(log)[0].endswith("|is ***")


@pytest.mark.parametrize(
    "extra",
    [
        {"details": {"born": date(1990, 1, 2)}},
        {"details": [{"born": "1990-01-02"}]},
        {"item": "1990-01-02"},
    ],
    ids=["as JSON", "nested", "field"],
)
def test_extra_hides_secrets_in_whatever_way_it_is_written(log, json_log, extra):
    cls = logging_step(lambda self: theirs.info("is", extra=extra), redact=["born"])
    run_all(cls, born="1990-01-02")
    assert "1990" not in log.getvalue() + json_log.getvalue()
    assert "datetime.date" not in json_log.getvalue()


def test_a_value_whose_text_logs_in_its_turn_is_asked_once(log):
    class Talks:
        def __str__(self):
            theirs.info("SELECT 4111")
            return "4111"

    def act(self):
        self.data["pin"] = Talks()
        theirs.info("is 4111")
        raise Abort

    act_on_card(act)
    told = [line.split("|")[-1] for line in lines(log)[:2]]
    assert told == ["Message withheld: it could not be searched for secrets.", "is ***"]
    assert "4111" not in log.getvalue()


def test_an_attempt_that_an_interrupt_left_in_hand_ends_with_its_message(log):
    current._attempt.set(current.CurrentAttempt(claim(logging_step(fails).start().run, "one")))
    logging_step(lambda self: None).start()
    process_next()
    assert current.current_attempt() is None


def test_secrets_that_cannot_be_looked_for_take_the_whole_line_with_them(log, json_log):
    class Broken:
        def __str__(self):
            raise ZeroDivisionError

    def act(self):
        self.data["pin"] = Broken()
        theirs.info("is 4111", extra={"card": "4111"})
        raise Abort

    act_on_card(act)
    assert lines(log)[0].endswith("|one||1|Message withheld: it could not be searched for secrets.")
    assert objects(json_log)[0]["card"] == "***"


def test_a_sequence_that_hides_nothing_has_its_data_looked_at_by_nobody(log, monkeypatch):
    monkeypatch.setattr("sequences.data.redaction._texts", None)
    monkeypatch.setattr("sequences.engine.current.json", None)
    run_all(logging_step(lambda self: theirs.info("hello")), card="4111")
    assert lines(log)[0].endswith("|hello")


def test_the_claims_secrets_are_looked_for_once_in_an_attempt(log, monkeypatch):
    parsed = []
    monkeypatch.setattr(
        current, "json", SimpleNamespace(loads=lambda text: parsed.append(text) or {})
    )
    held = claim(
        logging_step(lambda self: None, redact=["card"]).start({"card": "4111"}).run, "one"
    )
    attempt = current.CurrentAttempt(held)
    for _ in range(3):
        attempt.secrets()
    assert parsed == [held.data]


# --- JSON


def test_a_line_is_one_object_with_what_was_given_as_extra(json_log):
    def act(self):
        theirs.warning("two\nlines", extra={"order": 7, "when": datetime(2026, 1, 2, tzinfo=UTC)})

    run = run_all(logging_step(act)).run
    (line,) = objects(json_log)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "WARNING",
        "logger": "shop",
        "message": "two\nlines",
        "sequence": "shop.Logs",
        "run": str(run.pk),
        "step": "one",
        "item": "",
        "attempt": 1,
        "order": 7,
        "when": "2026-01-02T00:00:00+00:00",
    }


def test_outside_of_a_step_the_five_are_empty_in_json_too(json_log):
    theirs.info("hello")
    (line,) = objects(json_log)
    assert [line[name] for name in ("sequence", "run", "step", "item", "attempt")] == [""] * 5
    assert "exception" not in line


class Cards(Enum):
    JOEL = "4111"


@pytest.mark.parametrize(
    "value",
    [
        {"card": "4111"},
        [Cards.JOEL],
        Cards.JOEL,
        {1: {"card": b"4111"}},
        {"4111"},
        {("4111", 1): 2},
    ],
    ids=["mapping", "member in a list", "member", "bytes", "set", "keys"],
)
def test_a_value_that_json_writes_in_its_own_way_keeps_its_secrets(json_log, value):
    act_on_card(lambda self: theirs.info("is", extra={"paid": value}))
    (line,) = objects(json_log)
    assert line["message"] == "is"
    assert isinstance(line["paid"], str)
    assert "4111" not in json_log.getvalue()


@pytest.mark.parametrize(
    "born", [date(1990, 1, 2), datetime(1990, 1, 2, 3, tzinfo=UTC)], ids=["date", "datetime"]
)
def test_a_message_that_is_a_mapping_keeps_its_secrets(json_log, born):
    cls = logging_step(lambda self: theirs.info({"born": born, "n": 1}), redact=["born"])
    run_all(cls, born=born.isoformat())
    (line,) = objects(json_log)
    assert '"n": 1' in line["message"]
    assert "1990" not in json_log.getvalue()


def test_a_formatter_that_writes_arguments_or_the_exception_by_itself_gets_no_secret():
    class Own(logging.Formatter):
        def format(self, record):
            error = record.exc_info and record.exc_info[1]
            return f"{record.getMessage()} {record.args} {error!r} {record.exc_text}"

    def act(self):
        try:
            raise LookupError(f"nothing at {self.data['card']['no']}")
        except LookupError:
            theirs.exception("is %.1s", self.data["card"]["no"])

    with (
        written(logging.Formatter("cut: {message}", style="{")),
        written(Own(), StepFilter()) as log,
    ):
        act_on_card(act)
    assert log.getvalue().startswith("is 4 () None Traceback")
    assert "LookupError: nothing at ***" in log.getvalue()
    assert "4111" not in log.getvalue()


def test_an_exception_without_a_secret_stays_one():
    class Own(logging.Formatter):
        def format(self, record):
            return f"{record.getMessage()}: {record.exc_info[0].__name__}"

    def act(self):
        try:
            raise LookupError("nothing")
        except LookupError:
            theirs.exception("so it goes")

    with written(Own(), StepFilter()) as log:
        act_on_card(act)
    assert lines(log) == ["so it goes: LookupError"]


def test_both_together_and_across_a_queue(json_log):
    waiting = queue.Queue()
    handler = QueueHandler(waiting)
    handler.addFilter(StepFilter())
    theirs.addHandler(handler)
    theirs.propagate = False
    try:
        run_all(logging_step(lambda self: theirs.info("is 4111"), redact=["card"]), card="4111")
    finally:
        theirs.propagate = True
        theirs.removeHandler(handler)
    logging.root.handle(waiting.get_nowait())  # as the listener's thread does
    (line,) = objects(json_log)
    assert (line["message"], line["step"]) == ("is ***", "one")


def test_logging_is_configured_before_there_are_models():
    code = f"""
import logging
from django.conf import settings
{LOGGING}
settings.configure(
    INSTALLED_APPS=["django_dramatiq", "sequences"],
    DRAMATIQ_BROKER={{"BROKER": "dramatiq.brokers.stub.StubBroker"}},
    LOGGING=LOGGING,
)
import django
django.setup()
logging.warning("ready")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = json.loads(done.stderr.splitlines()[-1])
    assert (line["message"], line["level"], line["logger"]) == ("ready", "WARNING", "root")


def test_what_the_package_logs_of_a_commit_that_broke_is_of_the_step(log, monkeypatch):
    run_and_commit = StepExecution._run_and_commit

    def broken(self, *args):
        run_and_commit(self, *args)
        raise ConnectionError("4111 is on its way")

    monkeypatch.setattr(StepExecution, "_run_and_commit", broken)
    cls = logging_step(lambda self: None, redact=["card"])
    perform(claim(cls.start({"card": "4111"}).run, "one"))
    assert "|one||1|Step one of run" in log.getvalue()
    assert "failed after its commit: ConnectionError('*** is on its way')" in log.getvalue()
    assert "4111" not in log.getvalue()
