import json
import re
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import count
from types import SimpleNamespace
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.core.serializers.json import DjangoJSONEncoder
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from sequences import Abort, Sequence, any_of, event, job, step
from sequences.flows.builder import start_definition
from sequences.inspection import snapshot
from sequences.management.cli import argtypes, base, selectors, tables, wait
from sequences.management.cli.live import Display
from sequences.management.commands.sequences import Command
from sequences.models import Operation, RunDeadline, SequenceRun
from sequences.testing import clock, drain
from sequences.transitions import clock as database_clock
from sequences.utils import terminal
from tests.console import command as sequences
from tests.engine import claim, fail, fresh, ledger, now, perform, row
from tests.models import Receipt

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _user(monkeypatch):
    monkeypatch.setattr(base.getpass, "getuser", lambda: "ada")


@pytest.fixture
def performs(monkeypatch):
    """While the command waits, a worker performs what is due."""
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        drain()

    monkeypatch.setattr(wait, "sleep", sleep)
    return pauses


class Terminal(StringIO):
    def isatty(self):
        return True


def refused(*arguments, status=None, err=None, **options):
    """What the command says instead of doing it."""
    with pytest.raises(CommandError) as caught:
        sequences(*arguments, stderr=err or StringIO(), **options)
    if status is not None:
        assert caught.value.returncode == status
    return str(caught.value)


def as_json(*arguments, **options):
    return json.loads(sequences(*arguments, "--json", **options))


def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("card.*", "token")
            verbose_name = "order"

        @step
        def charge(self):
            if self.data.get("broken"):
                raise Abort(f"no money on {self.data['card']['number']}\nand a second line")
            return {"token": "abcdefgh", "paid": 3}

        @step
        def ship(self):
            self.data["shipped"] = True

    return Order


def failed(cls=None, key=None):
    run = (cls or order()).start({"broken": True, "card": {"number": "4111-1111"}}, key=key).run
    drain()
    run.refresh_from_db()
    assert run.status == "failed"
    return run


def approval():
    class Approval(Sequence):
        class Meta:
            app_label = "shop"

        approved = event(timeout=timedelta(days=3))

        @step(delay=timedelta(hours=5))
        def tell(self): ...

    return Approval


def answer():
    class Answer(Sequence):
        class Meta:
            app_label = "shop"

        approved = event()
        refused = event(after=[])

        @step(after=any_of(approved, refused))
        def tell(self): ...

    return Answer


# --- what people type


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("15 min", timedelta(minutes=15)),
        ("24h", timedelta(days=1)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
        ("1h30m", timedelta(minutes=90)),
        ("0.5s", timedelta(milliseconds=500)),
        ("250ms", timedelta(milliseconds=250)),
        ("3 days", timedelta(days=3)),
        ("1 hour", timedelta(hours=1)),
        ("2 weeks", timedelta(days=14)),
        ("1 hour, 30 minutes and 5 s", timedelta(seconds=5405)),
        ("PT1H", timedelta(hours=1)),
        ("P3DT12H", timedelta(hours=84)),
    ],
)
def test_a_duration_is(text, expected):
    assert argtypes.duration(text) == expected


@pytest.mark.parametrize("text", ["", "5", "h", "5x", "-5m", "5m later", "9" * 30 + "d"])
def test_a_duration_is_not(text):
    with pytest.raises(ArgumentTypeError, match="such as 90s, 15m, 24h or 7d"):
        argtypes.duration(text)


def test_a_moment_is_a_duration_or_a_date(settings):
    settings.TIME_ZONE = "Europe/Berlin"
    assert argtypes.moment("24h") == timedelta(days=1)
    assert argtypes.moment("3 days") == timedelta(days=3)
    assert argtypes.moment("2026-11-21").isoformat() == "2026-11-21T00:00:00+01:00"
    assert argtypes.moment("2026-11-21T08:00Z").utcoffset() == timedelta()
    for wrong in ("yesterday", "2026-13-01"):
        with pytest.raises(ArgumentTypeError, match="neither a duration such as 24h nor a date"):
            argtypes.moment(wrong)


def test_data_is_json_or_a_file_or_the_standard_input(tmp_path, monkeypatch):
    file = tmp_path / "in.json"
    file.write_text('{"a": 1}')
    monkeypatch.setattr("sys.stdin", StringIO('{"b": 2}'))
    assert argtypes.json_object('{"c": 3}') == {"c": 3}
    assert argtypes.json_object(f"@{file}") == {"a": 1}
    assert argtypes.json_object("-") == {"b": 2}
    assert argtypes.assignment("n=1") == ("n", 1)
    assert argtypes.assignment("name=Joel") == ("name", "Joel")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "'{' is not JSON"),
        ("@/nowhere.json", "/nowhere.json cannot be read: No such file"),
        ("[1]", 'data must be a JSON object such as {"name": "Joel"}, not [1]'),
        ('{"a": ' * 300 + "1" + "}" * 300, "the JSON is nested too deeply"),
    ],
)
def test_data_that_is_none_is_refused_with_its_mend(data, says):
    order()
    assert says in refused("start", "shop.Order", "--data", data)
    assert not SequenceRun.objects.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("cancel", "RUN", "--reason", "\udcff"),
        ("cancel", "RUN", "--by", "\udcff"),
        ("show", "\udcff"),
        ("list", "--key", "\udcff"),
        ("list", "--subject", "auth.user:\udcff"),
        ("limits", "\udcff"),
        ("schedules", "list", "\udcff"),
    ],
)
def test_an_argument_that_is_not_utf_8_is_refused(arguments):
    run = order().start({}).run
    assert "utf-8" in refused(*(run.pk if one == "RUN" else one for one in arguments)).lower()
    assert not fresh(run).operations.exists()


def test_a_list_reaches_as_far_back_and_as_far_on_as_one_likes():
    run = order().start({}).run
    for arguments in (("--since", "900000d"), ("--since", "999999999d"), ("--limit", "9" * 30)):
        assert str(run.pk) in sequences("list", *arguments, "--json")


def test_a_text_cannot_steer_the_terminal():
    assert terminal.plain("a\x1b[2Jb\r\nc\u202e") == "a\\x1b[2Jb\\r\\nc\\u202e"
    assert terminal.plain("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
    assert terminal.plain("Zoë 注文") == "Zoë 注文"


def test_a_table_fits_the_terminal_by_cutting_what_is_widest():
    cells = [[tables.Cell("x" * 40), tables.Cell("id"), tables.Cell("注文" * 10)]]
    (line,) = tables.table(cells, 40, narrowing=[0, 2])
    assert terminal.cells(line) <= 40
    assert line.count("…") == 2
    assert "  id  " in line
    assert tables.table(cells, None) == [f"{'x' * 40}  id  {'注文' * 10}"]
    assert len(tables.table(cells, 5, narrowing=[0, 2])[0]) >= 2 * tables.MIN_COLUMN_WIDTH - 4


def test_ids_are_cut_only_as_far_as_they_differ():
    ids = [UUID(int=n << 80) for n in (1, 2)]
    assert {len(text) for text in tables.shortened(ids).values()} == {18}
    close = [UUID(int=1), UUID(int=2)]
    assert tables.shortened(close) == {one: str(one) for one in close}


# --- which run


def test_a_run_is_found_by_its_id_its_beginning_and_its_key():
    cls = order()
    run = cls.start({}, key="a:b").run
    other = cls.start({}).run
    assert selectors.find(str(run.pk)) == run
    assert selectors.find(run.pk.hex.upper()) == run
    assert selectors.find("shop.Order:a:b") == run
    different = next(n for n in range(36) if str(run.pk)[n] != str(other.pk)[n])
    assert selectors.find(str(run.pk)[: different + 1]) == run


def test_a_beginning_of_several_ids_is_refused_with_some_of_them():
    cls = order()
    first, second = (cls.start({}).run for _ in range(2))
    message = refused("show", str(first.pk)[:8], status=2)
    assert str(first.pk) in message
    assert str(second.pk) in message


@pytest.mark.parametrize("text", ["nothing", "shop.Order:none", "0000", "", "ab", ":"])
def test_a_run_that_is_not_there_is_refused_with_the_mend(text):
    order().start({}, key="some")
    assert "Use an ID, an ID prefix, or label:key" in refused("show", text, status=2)


def test_of_runs_that_had_one_key_the_holder_is_meant():
    cls = order()
    first = cls.start({}, key="k", unique="unfinished").run
    drain()
    second = cls.start({}, key="k", unique="unfinished").run
    drain()
    assert selectors.find("shop.Order:k") == second
    third = cls.start({}, key="k", unique="unfinished").run
    assert selectors.find("shop.Order:k") == third
    assert first != third


def test_a_definition_that_is_kept_with_its_run_has_a_colon_in_its_name(tmp_path):
    job("greet")(lambda: None)
    file = tmp_path / "hello.json"
    file.write_text('{"steps": {"greet": {"job": "greet"}}}')
    sequences("start", "--file", file, "--key", "k1")
    assert selectors.find("job_sequences.Flow:hello:k1").key == "k1"


# --- list


def test_list_shows_the_newest_first_and_where_they_are():
    cls = order()
    mended = cls.start({}, key="o-1").run
    drain()
    bad = failed(cls, "o-2")
    lines = sequences("list").splitlines()
    assert lines[0].split() == [
        "RUN", "SEQUENCE", "KEY", "STATUS", "AT", "DONE", "AGE", "ERROR",
    ]  # fmt: skip
    assert re.split(r"  +", lines[1])[:6] == [
        str(bad.pk), "shop.Order", "o-2", "failed", "charge", "0/2",
    ]  # fmt: skip
    assert lines[1].endswith("Abort: no money on ***")
    assert lines[2].startswith(str(mended.pk))
    assert "succeeded" in lines[2]


def test_list_without_a_run_says_so():
    assert sequences("list") == "No matching runs.\n"
    assert as_json("list") == []


def test_list_as_json_has_what_a_script_needs():
    bad = failed(key="o-2")
    (found,) = as_json("list")
    assert found["id"] == str(bad.pk)
    assert (found["sequence"], found["key"], found["status"]) == ("shop.Order", "o-2", "failed")
    assert (found["at"], found["done"], found["total"]) == (["charge"], 0, 2)
    assert found["error"] == {
        "step": "charge",
        "item": None,
        "attempt": 1,
        "error": "sequences.exceptions.Abort",
        "message": "no money on ***\nand a second line",
    }
    assert "data" not in found
    assert set(found) == {
        "id", "sequence", "key", "subject", "status", "at", "struggling", "done", "total",
        "fraction", "created_at", "finished_at", "duration", "error", "cause",
    }  # fmt: skip


@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
def test_a_run_that_has_ended_otherwise_has_no_error(end):
    run = order().start({}).run
    fail(claim(run, "charge"), final=False, error=ValueError("no money"))
    assert as_json("list")[0]["error"]["message"] == "no money"
    run = fresh(run)
    run.cancel() if end == "cancelled" else run.finish()
    assert fresh(run).status == end
    assert "no money" not in sequences("list")
    assert as_json("list")[0]["error"] is None
    described = as_json("show", run.pk)
    assert described["error"] is None
    assert described["failures"][0]["message"] == "no money"


def test_list_is_filtered():
    cls, other = order(), approval()
    bad = failed(cls, "o-1")
    waits = other.start({}, key="a-1").run
    drain()
    old = cls.start({}).run
    SequenceRun.objects.filter(pk=old.pk).update(created_at=now() - timedelta(days=2))

    def ids(*arguments):
        return {UUID(one["id"]) for one in as_json("list", *arguments)}

    assert ids("--sequence", "shop.Order") == {bad.pk, old.pk}
    assert ids("--status", "failed") == {bad.pk}
    assert ids("--status", "unfinished") == {waits.pk, old.pk}
    assert ids("--status", "finished") == {bad.pk}
    assert ids("--key", "a-1") == {waits.pk}
    assert ids("--step", "approved") == {waits.pk}
    assert ids("--step", "charge") == {bad.pk, old.pk}
    assert ids("--since", "24h") == {bad.pk, waits.pk}
    assert ids("--since", (timezone.now() - timedelta(days=9)).isoformat()) == {
        bad.pk, waits.pk, old.pk,
    }  # fmt: skip
    assert len(ids("--limit", "1")) == 1


def test_a_run_is_about_an_object_and_is_found_by_it():
    order()
    receipt, other = Receipt.objects.create(), Receipt.objects.create()
    key = f"tests.receipt:{receipt.pk}"
    sequences("start", "shop.Order", "--key", "a", "--subject", f"tests.Receipt:{receipt.pk}")
    sequences("start", "shop.Order", "--key", "b", "--subject", f"tests.receipt:{other.pk}")
    sequences("start", "shop.Order", "--key", "c")
    run = SequenceRun.objects.get(key="a")
    assert run.subject == receipt
    [listed] = as_json("list", "--subject", key)
    assert (listed["key"], listed["subject"]) == ("a", key)
    assert {each["key"]: each["subject"] is None for each in as_json("list")} == {
        "a": False,
        "b": False,
        "c": True,
    }
    assert as_json("show", "shop.Order:a")["subject"] == key
    assert f"about     {key} (receipt {receipt.pk})" in sequences("show", "shop.Order:a")
    assert "about" not in sequences("show", "shop.Order:c")
    receipt.delete()
    assert f"about     {key} (deleted)" in sequences("show", "shop.Order:a")
    sequences("cancel", "--all", "--subject", key)
    statuses = dict(SequenceRun.objects.values_list("key", "status"))
    assert statuses == {"a": "cancelled", "b": "running", "c": "running"}


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        ("17", "'17' does not have the form app.model:pk"),
        ("tests.gone:17", "there is no model tests.gone"),
        ("tests.receipt:x", "there is no tests.receipt:x"),
        ("tests.receipt:99999999999999999999", "there is no tests.receipt:99999999999999999999"),
    ],
)
def test_start_refuses_an_object_that_is_not_there(subject, says):
    order()
    assert says in refused("start", "shop.Order", "--subject", subject)
    assert not SequenceRun.objects.exists()


def test_list_of_an_unknown_sequence_names_the_nearest():
    order()
    assert refused("list", "--sequence", "shop.Oder", status=2) == (
        "There is no sequence 'shop.Oder', and no run of it. Did you mean 'shop.Order'?"
    )


def test_list_of_a_sequence_that_is_gone_shows_its_runs_without_their_secrets():
    run = failed()
    SequenceRun.objects.filter(pk=run.pk).update(sequence="gone.Order")
    (found,) = as_json("list", "--sequence", "gone.Order")
    assert "4111" not in json.dumps(found)


def test_list_takes_the_same_queries_for_one_run_as_for_many():
    cls = order()
    failed(cls)
    sequences("list")  # learns the plan
    with CaptureQueriesContext(connection) as one:
        sequences("list")
    for _ in range(5):
        failed(cls)
    with CaptureQueriesContext(connection) as many:
        sequences("list")
    assert 0 < len(many) == len(one) < 8


def test_list_fits_a_terminal_and_is_coloured_there_only(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    failed(key="\x1b[31mkey" * 20)
    out = sequences("list", out=Terminal(), force_color=True)
    assert "\x1b[31;1mfailed" in out or "\x1b[1;31mfailed" in out
    bare = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert "\x1b" not in bare
    assert {len(line) <= 90 for line in bare.splitlines()} == {True}
    assert "\x1b" not in sequences("list", out=Terminal(), no_color=True)
    assert "\x1b" not in sequences("list")


# --- show


def test_show_tells_all_about_a_run_and_no_secret():
    run = failed(key="o-1")
    run.edit({**run.data, "note": "x"}, by="ada", reason="a note")
    out = sequences("show", "shop.Order:o-1")
    assert out.startswith("Order: o-1\n")
    assert f"id        {run.pk}" in out
    assert "“charge” failed" in out
    assert re.search(r"charge +failed +1 ", out)
    assert '"number": "***"' in out
    assert "#1  Abort: no money on ***" in out
    assert "edit by ada: a note" in out
    assert "4111" not in out
    assert "Traceback" not in out
    with_tracebacks = sequences("show", run.pk, "--tracebacks")
    assert "    Traceback (most recent call last):" in with_tracebacks
    assert re.search(r"^      … \d+ library frames$", with_tracebacks, re.MULTILINE)
    frames = re.findall(r'^ *File "([^"]+)"', with_tracebacks, re.MULTILINE)
    assert frames == [__file__], "only the project's own"
    assert "4111" not in with_tracebacks


def test_show_as_json_has_stable_keys_and_no_secret():
    cls = order()
    run = cls.start({"card": {"number": "4111-1111"}}).run
    drain()
    found = as_json("show", run.pk)
    assert found["data"] == {"card": {"number": "***"}, "shipped": True}
    charge, ship = found["steps"]
    assert set(charge) == {
        "name", "label", "kind", "after", "any_of", "status", "on_hold", "attempts", "items",
        "progress", "text", "waited", "ran", "due_at", "phases", "worker", "result",
    }  # fmt: skip
    assert charge["result"] == {"token": "***", "paid": 3}
    assert (ship["after"], ship["status"]) == (["charge"], "succeeded")
    assert (found["version"], found["parent"], found["children"]) == (fresh(run).version, None, [])
    assert (found["failures"], found["operations"], found["error"]) == ([], [], None)
    assert found["family"] == []
    assert found["summary"].startswith("Succeeded ")
    (failure,) = as_json("show", failed(cls).pk)["failures"]
    assert "traceback" not in failure
    (failure,) = as_json("show", failed(cls).pk, "--tracebacks")["failures"]
    assert failure["traceback"].startswith("Traceback")


# --- start


def test_start_starts_with_data_and_a_key():
    order()
    out = sequences("start", "shop.Order", "--data", '{"n": 1}', "--key", "k")
    run = SequenceRun.objects.get()
    assert out == f"Started shop.Order {run.pk}\n"
    assert (run.data, run.key, run.status) == ({"n": 1}, "k", "running")
    again = sequences("start", "shop.Order", "--key", "k")
    assert again == f"Already exists: shop.Order {run.pk}\n"
    sequences("start", "shop.Order", "--delay", "5m")
    assert row(SequenceRun.objects.get(key=None), "charge").due_at > now() + timedelta(minutes=4)


def test_start_as_json_is_the_run():
    order()
    found = as_json("start", "shop.Order", "--data", '{"token": "abcdef"}', "--key", "k")
    assert (found["created"], found["status"], found["data"]) == (True, "running", {"token": "***"})
    assert as_json("start", "shop.Order", "--key", "k")["created"] is False


def test_start_refuses_what_is_not_there_or_not_so():
    order()
    assert "Did you mean 'shop.Order'?" in refused("start", "shop.Odrer", status=2)
    assert refused("start", status=2) == "Name a sequence by its label, or use --file flow.yaml."
    assert "key is ''" in refused("start", "shop.Order", "--key", "", status=2)
    assert "needs --wait" in refused("start", "shop.Order", "--timeout", "5s", status=2)
    assert "contains U+0000. Remove" in refused(
        "start", "shop.Order", "--data", '{"a": "\\u0000"}', status=2
    )
    assert "is not a duration" in refused("start", "shop.Order", "--delay", "soon")
    assert not SequenceRun.objects.exists()


def test_start_runs_a_flow_file_that_is_kept_with_the_run(tmp_path, performs):
    job("double")(lambda number: number * 2)
    file = tmp_path / "doubling.yaml"
    file.write_text("steps: {double: {job: double}}\noutputs: {number: steps.double}\n")
    out = sequences("start", "--file", file, "--data", '{"number": 3}', "--wait")
    run = SequenceRun.objects.get()
    assert (run.sequence, run.data) == ("job_sequences.Flow:doubling", {"number": 6})
    assert "Started job_sequences.Flow:doubling" in out
    named = tmp_path / "other.yaml"
    named.write_text("name: shop.Import\nsteps: {double: {job: double}}\n")
    sequences("start", "--file", named)
    assert SequenceRun.objects.filter(sequence="job_sequences.Flow:shop.Import").exists()


def test_a_flow_file_that_cannot_be_run_says_what_is_wrong_in_it(tmp_path):
    file = tmp_path / "flow.yaml"
    assert refused("start", "--file", file, status=2) == (
        f"{file} cannot be read: No such file or directory."
    )
    file.write_text("steps: {double: {job: dobule}}")
    assert "dobule" in refused("start", "--file", file, status=2)
    file.write_text("steps: [")
    assert "it is not valid YAML" in refused("start", "--file", file, status=2)
    file.write_text("redact: [a]\nsteps: {double: {job: double}}")
    assert "it has redact, which only declared definitions can have" in refused(
        "start", "--file", file, status=2
    )


def test_start_and_wait_ends_when_the_run_has_succeeded(performs):
    order()
    out = sequences("start", "shop.Order", "--wait")
    assert SequenceRun.objects.get().status == "succeeded"
    assert re.search(r"\nSucceeded after .+\.\n$", out)


def test_start_and_wait_ends_as_a_failed_run_and_says_why(performs):
    order()
    data = '{"broken": true, "card": {"number": "4111-1111"}}'
    message = refused("start", "shop.Order", "--data", data, "--wait", status=1)
    run = SequenceRun.objects.get()
    assert "“charge” failed" in message
    assert "Abort: no money on ***" in message
    assert f"manage.py sequences show {run.pk} --tracebacks" in message


def test_start_and_wait_as_json_is_the_run_as_it_has_ended(performs):
    order()
    out = StringIO()
    data = '{"broken": true, "card": {"number": "4111-1111"}}'
    with pytest.raises(CommandError):
        sequences("start", "shop.Order", "--data", data, "--wait", "--json", out=out)
    assert json.loads(out.getvalue())["status"] == "failed"


def test_start_and_wait_of_a_cancelled_run_has_a_status_of_its_own(monkeypatch):
    order()
    monkeypatch.setattr(wait, "sleep", lambda _: SequenceRun.objects.get().cancel())
    assert "did not succeed. Cancelled" in refused("start", "shop.Order", "--wait", status=3)


def test_start_and_wait_gives_up_when_its_time_is_over_and_the_run_goes_on(monkeypatch):
    order()
    ticks = count(step=4)
    fake = SimpleNamespace(monotonic=lambda: next(ticks), sleep=None)
    monkeypatch.setattr(wait, "time", fake)
    slept = []
    monkeypatch.setattr(wait, "sleep", slept.append)
    message = refused("start", "shop.Order", "--wait", "--timeout", "10s", status=124)
    run = SequenceRun.objects.get()
    assert "has not finished within 10 s. It continues" in message
    assert f"watch {run.pk}" in message
    assert run.status == "running"
    assert slept
    assert max(slept) <= wait.MAX_PAUSE_SECONDS


def breaks_for(monkeypatch, times):
    """The database is away for so many looks, from the second one on."""
    looks = count()
    again = wait._again

    def broken(run):
        if 0 < next(looks) <= times:
            raise OperationalError("server closed the connection")
        return again(run)

    monkeypatch.setattr(wait, "_again", broken)


def test_a_database_that_is_restarted_is_no_outcome_of_the_run(monkeypatch):
    order()
    breaks_for(monkeypatch, 3)
    rounds = count()
    monkeypatch.setattr(wait, "sleep", lambda _: drain() if next(rounds) == 2 else None)
    assert "Succeeded" in sequences("start", "shop.Order", "--wait")
    assert next(rounds) == 4


def test_a_database_that_stays_away_ends_the_wait_and_nobody_takes_the_run_for_failed(monkeypatch):
    order()
    breaks_for(monkeypatch, 99)
    ticks = count(step=25)
    fake = SimpleNamespace(monotonic=lambda: next(ticks), sleep=None)
    monkeypatch.setattr(wait, "time", fake)
    monkeypatch.setattr(wait, "sleep", lambda _: None)
    message = refused("start", "shop.Order", "--wait", status=124)
    assert "can no longer be read: server closed the connection. It continues" in message
    assert next(ticks) == 100


def test_an_interrupt_ends_the_wait_and_not_the_run(monkeypatch):
    order()

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(wait, "sleep", interrupt)
    message = refused("start", "shop.Order", "--wait", status=130)
    assert "is still running; stopped waiting. It continues" in message
    assert SequenceRun.objects.get().status == "running"


def test_who_waits_is_told_once_if_no_worker_begins(monkeypatch):
    order()
    err = StringIO()
    rounds = count()

    def sleep(_):
        database_clock.move(timedelta(seconds=20))
        if next(rounds) == 3:
            drain()

    monkeypatch.setattr(wait, "sleep", sleep)
    with clock():
        out = StringIO()
        call_command("sequences", "start", "shop.Order", "--wait", stdout=out, stderr=err)
    assert err.getvalue().count("No worker has started it yet. Is one running for the queue") == 1


# --- watch


def test_watch_tells_each_change_and_ends_as_the_run_does(performs):
    run = approval().start({}).run
    drain()
    run.deliver("approved", {"yes": True})
    with clock() as moving:
        drain()
        moving.move(timedelta(hours=6))
        out = sequences("watch", run.pk)
    told = [line.split("  ")[-1] for line in out.splitlines()]
    assert told == [
        "approved succeeded", "tell waiting", "Approval running", "tell succeeded",
        "Approval succeeded",
    ]  # fmt: skip
    assert "“charge” failed" in refused("watch", failed().pk, status=1)


def test_watch_as_json_is_a_line_for_each_change(performs):
    run = order().start({}).run
    lines = [json.loads(line) for line in sequences("watch", run.pk, "--json").splitlines()]
    assert [line["status"] for line in lines] == ["running", "succeeded"]
    assert lines[0]["steps"] == {"charge": "queued"}
    assert lines[1]["steps"] == {"charge": "succeeded", "ship": "succeeded"}


def test_watch_draws_again_in_its_place_on_a_terminal(performs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    run = order().start({}, key="o-1").run
    drawn = sequences("watch", run.pk, out=Terminal(), no_color=True)
    first, second = drawn.split("\x1b[3F\x1b[J")
    assert first.splitlines()[0].startswith("Order  o-1  running  [          ")
    assert re.search(r"^  •  charge +queued$", first, re.M)
    assert re.search(r"^     ship$", first, re.M)
    assert re.search(r"^Order  o-1  succeeded  \[####################\]  2/2  ", second, re.M)
    assert second.count("✓") == 2
    assert {len(line) < 60 for line in (first + second).splitlines()} == {True}


def test_a_large_fan_out_is_shown_by_count(performs):
    class Pages(Sequence):
        class Meta:
            app_label = "shop"

        @step(each="pages", allow_failed=True)
        def fetch(self, page):
            if page == 3:
                raise Abort("gone")

    run = Pages.start({"pages": list(range(50))}).run
    perform(claim(run, "fetch"))
    for _ in range(3):
        items = run.steps.filter(item__gte=0, status="queued").order_by("item")
        run.steps.filter(pk=items.first().pk).update(status="succeeded")
    run.steps.filter(item=3).update(status="failed")
    out = StringIO()
    shown = Display(out)
    found = snapshot.of(fresh(run))
    shown.show([found])
    assert "fetch running 4/50, 1 failed\n" in out.getvalue()
    assert any("4/50, 1 failed" in line for line in shown.lines([found], 100))


def test_a_run_that_is_pruned_while_it_is_watched_is_gone(monkeypatch):
    run = order().start({}).run
    monkeypatch.setattr(wait, "sleep", lambda _: SequenceRun.objects.all().delete())
    assert refused("watch", run.pk) == f"Run {run.pk} no longer exists; it was probably pruned."


def test_without_a_subcommand_the_help_says_which_there_are(monkeypatch, capsys):
    for options in ([], ["--no-color"]):
        with pytest.raises(SystemExit) as ended:
            Command().run_from_argv(["manage.py", "sequences", *options])
        assert ended.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "usage: manage.py sequences" in err
        assert re.search(r"^ +restart-from +Run a step and all later steps again\.$", err, re.M)
        assert err.endswith("CommandError: A subcommand is missing: choose one of those above.\n")
    with pytest.raises(CommandError, match="A subcommand is missing") as caught:
        call_command("sequences")
    assert caught.value.returncode == 2


# --- acts


def test_an_act_is_done_by_the_user_of_the_shell_for_a_reason():
    run = failed(key="o-1")
    out = sequences("retry", "shop.Order:o-1", "--reason", "the bank is up")
    assert out == "Retried shop.Order o-1, which is running.\n"
    operation = run.operations.get()
    assert (operation.action, operation.by, operation.reason) == (
        "retry", "command line: ada", "the bank is up",
    )  # fmt: skip
    sequences("pause", run.pk, "--by", "cron")
    assert run.operations.last().by == "cron"


def test_a_user_without_a_name_is_the_command_line(monkeypatch):
    def getuser():
        raise OSError("no username set in the environment")

    monkeypatch.setattr(base.getpass, "getuser", getuser)
    assert base.caller() == "command line"


@pytest.mark.parametrize(
    ("words", "action", "status"),
    [
        (["pause"], "pause", "paused"),
        (["cancel"], "cancel", "cancelled"),
        (["cancel", "--undo"], "cancel_and_undo", "cancelled"),
        (["finish"], "finish", "succeeded"),
    ],
)
def test_an_act_is_the_method_of_that_name(words, action, status):
    run = order().start({}).run
    done = {"pause": "Paused", "cancel": "Cancelled", "finish": "Finished"}[words[0]]
    assert sequences(words[0], run.pk, *words[1:]) == f"{done} {run}.\n"
    assert fresh(run).status == status
    assert run.operations.get().action == action


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--in", "3d"], timedelta(days=3)),
        (["--at", "2100-01-01T08:00Z"], datetime(2100, 1, 1, 8, tzinfo=UTC)),
        (["--none"], None),
    ],
)
def test_a_deadline_is_set(words, expected):
    run = order().start({}, deadline=timedelta(hours=1)).run
    begun = now()
    done = "Removed" if expected is None else "Set"
    assert sequences("set-deadline", run.pk, *words) == (
        f"{done} the deadline of shop.Order {run.pk}, which is running.\n"
    )
    due = RunDeadline.objects.filter(run=run.pk).values_list("due_at", flat=True).first()
    if isinstance(expected, timedelta):
        assert begun + expected <= due <= now() + expected
    else:
        assert due == expected
    assert run.operations.get().action == "set_deadline"
    shown = json.loads(sequences("show", run.pk, "--json"))["deadline"]
    assert shown == (due and DjangoJSONEncoder().default(due))
    lines = sequences("show", run.pk).splitlines()
    assert any(line.startswith("deadline") for line in lines) is (due is not None)


@pytest.mark.parametrize("words", [[], ["--at", "tomorrow"], ["--in", "3d", "--none"]])
def test_a_deadline_is_one_moment(words):
    run = order().start({}).run
    with pytest.raises(CommandError):
        sequences("set-deadline", run.pk, *words)
    assert not RunDeadline.objects.exists()


def test_resume_and_erase_are_there_too():
    run = order().start({"n": 1}).run
    run.pause()
    sequences("resume", run.pk)
    drain()
    sequences("erase", run.pk)
    assert (fresh(run).status, fresh(run).data) == ("succeeded", {})


@pytest.mark.parametrize(("words", "key"), [([], None), (["--keep-key"], "order-1")])
def test_erase_frees_the_key_unless_it_is_kept(words, key):
    run = order().start({"n": 1}, key="order-1").run
    drain()
    sequences("erase", run.pk, *words)
    assert (fresh(run).key, fresh(run).data) == (key, {})


def test_an_act_that_is_refused_says_why_and_ends_with_one():
    cls = order()
    bad, run = failed(cls), cls.start({}).run
    err, out = StringIO(), StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("sequences", "retry", str(bad.pk), str(run.pk), stdout=out, stderr=err)
    assert caught.value.returncode == 1
    assert str(caught.value) == "retry was rejected for 1 of 2."
    assert out.getvalue().endswith("1 done, 1 rejected.\n")
    assert err.getvalue() == (
        f"Cannot retry run {run.pk}: no step has failed or is waiting for a retry.\n"
    )
    assert fresh(bad).status == "running"


def test_an_act_as_json_lists_done_and_refused():
    cls = order()
    bad, run = failed(cls), cls.start({}).run
    out = StringIO()
    with pytest.raises(CommandError):
        sequences("retry", bad.pk, run.pk, "--json", out=out)
    found = json.loads(out.getvalue())
    assert (found["action"], found["done"]) == ("retry", [str(bad.pk)])
    assert [one["run"] for one in found["rejected"]] == [str(run.pk)]
    assert found["rejected"][0]["why"].startswith("Cannot retry run")


def test_many_runs_are_chosen_by_filters_and_only_with_all():
    cls, other = order(), approval()
    bad = [failed(cls) for _ in range(3)]
    waits = other.start({}).run
    assert "Add --all" in refused("retry", "--sequence", "shop.Order", status=2)
    assert "Name the RUN" in refused("retry", status=2)
    assert "Name the RUN" in refused("cancel", "--all", status=2)
    assert "not both" in refused("retry", bad[0].pk, "--sequence", "shop.Order", "--all", status=2)
    dry = sequences("retry", "--sequence", "shop.Order", "--dry-run")
    assert dry.splitlines()[-1] == "retry would be applied to 3 runs."
    assert not Operation.objects.exists()
    out = sequences("retry", "--sequence", "shop.Order", "--all")
    assert out.endswith("3 done, 0 rejected.\n")
    assert {fresh(run).status for run in bad} == {"running"}
    sequences("cancel", "--status", "unfinished", "--all")
    assert fresh(waits).status == "cancelled"


def test_an_interrupt_tells_what_was_done_before_it(monkeypatch):
    cls = order()
    first, second = failed(cls), failed(cls)
    retry, calls = SequenceRun.retry, []

    def interrupted(self, **options):
        calls.append(self.pk)
        if len(calls) == 2:
            raise KeyboardInterrupt
        retry(self, **options)

    monkeypatch.setattr(SequenceRun, "retry", interrupted)
    out = StringIO()
    with pytest.raises(CommandError) as caught:
        sequences("retry", first.pk, second.pk, "--json", out=out)
    assert caught.value.returncode == 130
    assert json.loads(out.getvalue())["done"] == [str(first.pk)]
    assert fresh(second).status == "failed"


def test_a_restart_asks_again_for_events_unless_their_deliveries_are_kept():
    class Asks(Sequence):
        class Meta:
            app_label = "shop"

        approval = event()

    run = Asks().run
    run.deliver("approval", "yes")
    drain()
    sequences("restart-from", run.pk, "approval", "--keep-deliveries")
    drain()
    assert fresh(run).status == "succeeded"
    sequences("restart-from", run.pk, "approval")
    drain()
    assert ledger(run) == {"approval": "waiting"}


def test_skip_and_restart_from_take_the_step_last():
    run = failed()
    sequences("skip", run.pk, "charge", "--reason", "paid by cheque")
    drain()
    assert ledger(run) == {"charge": "skipped", "ship": "succeeded"}
    sequences("restart-from", run.pk, "ship")
    assert ledger(run) == {"charge": "skipped", "ship": "queued"}
    err = StringIO()
    assert "was rejected" in refused("skip", run.pk, "shpi", status=1, err=err)
    assert "Did you mean 'ship'?" in err.getvalue()


def test_an_act_on_a_step_takes_every_run_that_is_at_it():
    cls = order()
    bad, fine = failed(cls), cls.start({}).run
    perform(claim(fine, "charge"))
    sequences("skip", "charge", "--sequence", "shop.Order", "--all")
    assert ledger(bad)["charge"] == "skipped"
    assert ledger(fine) == {"charge": "succeeded", "ship": "queued"}


def test_an_act_on_a_step_says_what_was_done_to_which_step_and_how_the_run_is():
    run = failed(key="{run}")
    out = sequences("skip", run.pk, "charge")
    assert out == "Skipped “charge” of shop.Order {run}, which is running.\n"
    assert sequences("pause", run.pk) == "Paused shop.Order {run}.\n"
    out = sequences("set-deadline", run.pk, "--in", "3d")
    assert out == "Set the deadline of shop.Order {run}, which is paused.\n"
    assert sequences("resume", run.pk) == "Resumed shop.Order {run}, which is running.\n"
    drain()
    out = sequences("restart-from", run.pk, "ship")
    assert out == ("Restarted “ship” and all later steps of shop.Order {run}, which is running.\n")
    drain()
    out = sequences("erase", run.pk)
    assert out == f"Erased the data of shop.Order {run.pk}, which has succeeded.\n"


def test_run_now_does_not_wait():
    run = order().start({}, delay=timedelta(days=2)).run
    out = sequences("run-now", run.pk, "charge")
    assert out == f"Scheduled “charge” to run now in shop.Order {run.pk}, which is running.\n"
    assert row(run, "charge").status == "queued"


def test_deliver_ends_the_wait_with_a_payload_and_the_first_one_counts():
    run = approval().start({}).run
    drain()
    out = sequences(
        "deliver", run.pk, "approved", "--payload", '{"yes": true}', "--reason", "phone"
    )
    assert out == f"Delivered “approved” to {fresh(run)}, which is running.\n"
    assert fresh(run).inbox == {"approved": {"yes": True}}
    err = StringIO()
    refused("deliver", run.pk, "approved", status=1, err=err)
    assert "already has a delivery of 'approved'" in err.getvalue()
    assert [one.reason for one in run.operations.all()] == ["phone"]
    assert "is not JSON" in refused("deliver", run.pk, "approved", "--payload", "{")


def test_a_delivery_after_another_event_says_so_and_claims_no_earlier_delivery():
    run = answer().start({}).run
    drain()
    run.deliver("refused")
    err = StringIO()
    refused("deliver", run.pk, "approved", status=1, err=err)
    assert err.getvalue() == (
        f"Run {run.pk} no longer needs 'approved': another event or step came first.\n"
    )
    assert fresh(run).inbox == {"refused": None}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("running", "which is running."),
        ("undoing", "which is being rolled back."),
        ("failed", "which has failed."),
        ("cancelled", "which was cancelled."),
    ],
)
def test_the_state_after_an_operation_is_told_in_english(status, words):
    assert base.done_sentence("Erased the data of Order 1", status, None).endswith(words)


def test_edit_puts_other_data_in_place_and_leaves_what_is_shown_as_stars():
    run = failed()
    shown = as_json("show", run.pk)
    data = {**shown["data"], "broken": False}
    assert data["card"] == {"number": "***"}
    arguments = ["--if-version", shown["version"], "--reason", "mended"]
    out = sequences("edit", run.pk, "--data", json.dumps(data), *arguments)
    assert fresh(run).data == {"broken": False, "card": {"number": "4111-1111"}}
    version = fresh(run).version
    assert out == f"Changed the data of shop.Order {run.pk}, which is now at version {version}.\n"
    message = refused("edit", run.pk, "--data", json.dumps(data), *arguments, status=1)
    assert "it has changed since it was read" in message
    assert run.operations.get().by == "command line: ada"


def test_edit_refuses_stars_that_stand_for_nothing():
    run = failed()
    message = refused("edit", run.pk, "--data", '{"token": "***"}', status=2)
    assert message.startswith("token is *** in this data")
    assert fresh(run).data["card"]["number"] == "4111-1111"


def test_edit_sets_single_keys():
    run = failed()
    sequences("edit", run.pk, "--set", "broken=false", "--set", "note=by hand")
    assert fresh(run).data == {
        "broken": False, "note": "by hand", "card": {"number": "4111-1111"},
    }  # fmt: skip
    assert "Pass --data" in refused("edit", run.pk, status=2)
    held = claim(failed_again(run), "charge")
    assert held is not None
    assert "a step is running" in refused("edit", run.pk, "--set", "a=1", status=1)


def failed_again(run):
    run = fresh(run)
    run.retry()
    return run


# --- graph


def test_graph_draws_a_sequence_a_run_and_a_file(tmp_path):
    order()
    run = failed()
    picture = sequences("graph", "shop.Order", "--format", "svg")
    assert picture.startswith(("<svg", "<?xml"))
    assert "seq-node seq-failed" not in picture
    of_run = sequences("graph", run.pk, "--format", "svg")
    assert "seq-node seq-failed" in of_run
    job("greet")(lambda: None)
    flow, out = tmp_path / "flow.yaml", tmp_path / "flow.svg"
    flow.write_text("name: shop.Hello\nredact: [a]\nsteps: {greet_them: {job: greet}}")
    assert sequences("graph", "--file", flow, "--format", "svg", "-o", out) == ""
    assert "greet them" in out.read_text()


@pytest.mark.parametrize("form", ["text", "mermaid"])
def test_graph_writes(form):
    order()
    assert "charge" in sequences("graph", "shop.Order", "--format", form)
    assert "ship" in sequences("graph", failed().pk, "--format", form)


def test_graph_refuses_what_it_cannot_draw_or_write(tmp_path):
    order()
    assert "Name a sequence by its label" in refused("graph", status=2)
    assert "There is no run 'shop.Oder'" in refused("graph", "shop.Oder", status=2)
    message = refused("graph", "shop.Order", "--format", "svg", "-o", tmp_path, status=2)
    assert "cannot be written: Is a directory" in message


# --- prune


def old(cls, status="succeeded"):
    run = cls.start({}).run if status == "succeeded" else failed(cls)
    drain()
    began = now() - timedelta(days=60)
    SequenceRun.objects.filter(pk=run.pk).update(created_at=began, finished_at=began)
    return run


def test_prune_says_what_it_has_removed():
    cls = order()
    old(cls), old(cls)
    kept = old(cls, "failed")
    assert sequences("prune").startswith('All runs are kept. Set SEQUENCES["RETENTION"]')
    dry = sequences("prune", "--older-than", "30d", "--dry-run")
    assert dry == "shop.Order: 2\n2 runs in 2 trees would be pruned.\n"
    out = sequences("prune", "--older-than", "30d", "--batch", "1")
    assert out == "shop.Order: 2\n2 runs in 2 trees pruned.\n"
    assert list(SequenceRun.objects.all()) == [kept]
    sequences("prune", "--sequence", "shop.Order", "--failed-older-than", "30d")
    assert not SequenceRun.objects.exists()


def test_prune_says_what_it_has_kept_and_why():
    run = old(order())
    Receipt.objects.create(protects=run)
    out = sequences("prune", "--older-than", "30d")
    assert out == (
        "0 runs in 0 trees pruned.\n"
        f"1 kept, referenced by other objects of the project (tests.Receipt): {run.pk}\n"
    )
    assert as_json("prune", "--older-than", "30d") == {
        "dry_run": False,
        "pruned": {},
        "runs": 0,
        "trees": 0,
        "kept": [
            {
                "run": str(run.pk),
                "why": "referenced by other objects of the project",
                "by": {"tests.Receipt": 1},
            }
        ],
    }


def test_prune_of_an_unknown_sequence_is_refused():
    order()
    assert "Did you mean 'shop.Order'?" in refused("prune", "--sequence", "shop.Oder", status=2)


# --- all of them


def test_djangos_own_options_may_stand_behind_the_task():
    order().start({})
    assert "shop.Order" in sequences("list", "--no-color", "-v", "0", "--settings", "any.thing")


def test_options_can_be_given_by_name_from_code():
    order().start({})
    out = StringIO()
    call_command("sequences", "list", json=True, limit=1, stdout=out)
    assert len(json.loads(out.getvalue())) == 1


def test_every_task_explains_itself(capsys):
    for task in ("list", "show", "start", "watch", "retry", "skip", "edit", "graph", "prune"):
        with pytest.raises(SystemExit):
            sequences(task, "--help")
        assert "usage: " in capsys.readouterr().out


def test_neither_a_key_nor_the_name_of_a_flow_steers_the_terminal():
    run = failed(key="\x1b[2J")
    assert "\x1b" not in refused("watch", str(run.pk), status=1)
    flow = start_definition({"steps": {"wait": {"event": {}}}}, name="\x1b[2J").run
    out = StringIO()
    Display(out).show([snapshot.of(flow)])
    assert "\\x1b[2J running" in out.getvalue()
    assert "\x1b" not in out.getvalue()


STEERING = "\x1b[2J\x9b31m\x85\u202egnp\u2066\u200f\u061c\x07\x7f"


@pytest.mark.parametrize("out", [StringIO, Terminal])
@pytest.mark.parametrize(
    "call",
    [
        ["list"],
        ["list", "--json"],
        ["show", "RUN", "--tracebacks"],
        ["show", "RUN", "--tracebacks", "--json"],
        ["watch", "RUN"],
        ["watch", "RUN", "--json"],
        ["graph", "RUN"],
        ["graph", "RUN", "--format=mermaid"],
        ["graph", "RUN", "--format=svg"],
        ["retry", "RUN", "--json", "--reason", STEERING],
        ["cancel", "RUN"],
        ["edit", "RUN", "--data", "{}", "--reason", STEERING],
        ["set-deadline", "RUN", "--none"],
        ["erase", "RUN"],
        ["show", STEERING],
        ["start", STEERING],
        ["edit", "RUN", "--set", f"{STEERING}=[1"],
        ["prune", "--sequence", STEERING],
        ["health"],
        ["health", "--json"],
    ],
    ids=" ".join,
)
def test_no_output_steers_a_terminal(call, out):
    spec = {"job": "steers", "label": f"a{STEERING}", "max_retries": 0}

    @job("steers")
    def steers(sequence):
        sequence.data[STEERING] = STEERING
        sequence.progress(1, 2, STEERING)
        raise Abort(STEERING)

    run = start_definition({"steps": {"a": spec}}, {"x": STEERING}, key=STEERING, name=STEERING).run
    drain()
    fresh(run).edit({**fresh(run).data, "edited": True}, reason=STEERING)
    stdout, stderr = out(), out()
    try:
        sequences(*(run.pk if word == "RUN" else word for word in call), out=stdout, stderr=stderr)
    except CommandError as error:
        stderr.write(str(error))
    text = re.sub(r"\x1b\[\d*(;\d+)*[mFJ]", "", stdout.getvalue() + stderr.getvalue())
    assert text
    assert not [char for char in text if not char.isprintable() and char not in "\n\t"]


def test_json_has_what_was_escaped():
    run = failed(key=STEERING)
    assert as_json("show", run.pk)["key"] == STEERING
