"""What `Meta.redact` names is told nowhere: no page, no filter, no text of an error tells it."""

import json
from base64 import b64encode
from datetime import timedelta
from html import escape
from urllib.parse import quote_plus, urlencode

import pytest
from django.core.management import call_command

from sequences import Abort, Sequence, event, step, subsequence
from sequences.data import redaction
from sequences.engine.executor import StepExecution
from sequences.models import Operation, SequenceRun, StepFailure, StepRun
from sequences.testing import drain, run_sequence
from sequences.transitions import causes
from tests.console import RUNS, STEPS, command, content_of, step_url, url_of
from tests.engine import change, claim, fail, fresh, perform, row, take

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("caught")]

SECRET = "tok-77-secret"


class Order(Sequence):
    """Declared anew in every test, for it is registered then."""

    class Meta:
        abstract = True
        redact = ("token", "cards.number", "pay.token", "pack.code", "approval.pin")

    @step
    def pay(self):
        return {"token": SECRET}

    @step(each="cards")
    def pack(self, item):
        return {"code": SECRET}

    @pack.undo
    def unpack(self, item, result): ...

    approval = event(timeout=timedelta(days=3))


def order():
    return type("Order", (Order,), {"Meta": type("Meta", (), {"app_label": "shop"})})


def started(**data):
    return order().start({"cards": [{"number": SECRET, "owner": "Joan"}], **data}).run


def page_of_row(client, row):
    return content_of(client, step_url(row))


def item_of(run):
    perform(claim(run, "pay"))
    perform(claim(run, "pack"))
    return StepRun.objects.get(run=run.pk, step="pack", item=0)


def test_the_text_of_a_progress_is_told_without_secrets(admin_client, capsys):
    run = started(token=SECRET)
    claim(run, "pay")
    change(run, "pay", progress={"text": f"Asking with {SECRET}"})
    call_command("sequences", "show", str(run.pk))
    for told in (content_of(admin_client, url_of(run)), capsys.readouterr().out):
        assert "Asking with ***" in told
        assert SECRET not in told


@pytest.mark.parametrize(
    "lookup", ["data__token", "data__token__startswith", "data__icontains", "inbox__icontains"]
)
def test_runs_cannot_be_filtered_by_what_is_in_them(admin_client, lookup):
    started(token=SECRET)
    assert admin_client.get(f"{RUNS}?{urlencode({lookup: 'tok'})}").status_code == 400


@pytest.mark.parametrize(
    "lookup", ["result__token__startswith", "payload__icontains", "run__data__token"]
)
def test_step_runs_cannot_be_filtered_by_what_is_in_them(admin_client, lookup):
    perform(claim(started(), "pay"))
    assert admin_client.get(f"{STEPS}?{urlencode({lookup: 'tok'})}").status_code == 400


def test_an_item_is_hidden_as_in_the_list_that_it_comes_from(admin_client):
    item = item_of(started())
    perform(take(item.pk))
    page = page_of_row(admin_client, item)
    assert "Joan" in page
    assert SECRET not in page


def test_an_undo_hides_what_its_item_and_its_result_hide(admin_client):
    run = started()
    perform(take(item_of(run).pk))
    fresh(run).cancel(undo=True)
    undo = row(run, "unpack")
    assert undo.payload == {
        "item": {"number": SECRET, "owner": "Joan"},
        "result": {"code": SECRET},
    }
    page = page_of_row(admin_client, undo)
    assert "Joan" in page
    assert SECRET not in page


def test_a_delivery_is_hidden_as_a_result_is(admin_client):
    run = started()
    fresh(run).deliver("approval", {"token": SECRET, "pin": SECRET, "by": "Mia"})
    assert Operation.objects.get().after == {"token": "***", "pin": "***", "by": "Mia"}
    for address in (url_of(run), url_of(run, "value", "inbox")):
        page = content_of(admin_client, address)
        assert "Mia" in page
        assert SECRET not in page


def test_the_copies_in_data_of_what_came_from_outside_are_hidden_as_it_was(admin_client):
    class Child(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def carry(self): ...

    class Loan(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("token",)

        approval = event()
        ship = subsequence(Child, data=lambda self: {"token": SECRET, "by": "Mia"})

        @step(max_retries=0)
        def pay(self):
            raise ValueError(f"no {self.data['approval']['token']}")

    run = Loan.start({}).run
    run.deliver("approval", {"token": SECRET, "by": "Mia"})
    drain()
    outside = {"token": SECRET, "by": "Mia"}
    assert fresh(run).data == {"approval": outside, "ship": outside}
    assert StepFailure.objects.get().message == "no ***"
    for page in (
        content_of(admin_client, url_of(run)),
        content_of(admin_client, url_of(run, "value", "data")),
        command("show", run.pk, "--json"),
    ):
        assert "Mia" in page
        assert SECRET not in page


def test_failed_attempts_below_a_step_run_are_told_without_secrets(admin_client):
    run = started(token=SECRET)
    fail(claim(run, "pay"), error=ValueError(f"bad {SECRET}"))
    page = page_of_row(admin_client, row(run, "pay"))
    assert "ValueError: bad ***" in page
    assert SECRET not in page


def failing(act, token=SECRET):
    class Asks(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("token", "loop.token")

        @step
        def ask(self):
            act(self)

    run = Asks.start({"token": token}).run
    with pytest.raises(Abort):
        perform(claim(run, "ask"))
    return run


def failing_with(text, token=SECRET):
    def act(self):
        raise Abort(text)

    return failing(act, token)


def test_an_error_keeps_no_secret_that_is_replaced_later(admin_client):
    def act(self):
        raise Abort(f"{self.data['token']} is refused")

    run = failing(act)
    fresh(run).edit({"token": "another-one"})
    page = content_of(admin_client, url_of(run))
    assert "*** is refused" in page
    assert SECRET not in page
    assert SECRET not in StepFailure.objects.get().traceback


@pytest.mark.parametrize("before", range(4_980, 5_001))
def test_no_part_of_a_secret_is_left_where_a_message_is_cut(before):
    run = failing_with("x" * before + SECRET)
    message = run.failures.get().message
    assert message == ("x" * before + "***")[:5_000]


@pytest.mark.parametrize("after", range(19_975, 20_001))
def test_no_part_of_a_secret_is_left_where_a_traceback_is_cut(after):
    trace = failing_with(SECRET + "x" * after).failures.get().traceback
    assert trace.endswith(f"{'*' * (20_000 - after - 1)}{'x' * after}\n"[-20_000:][-after - 4 :])
    assert not [part for part in ("tok-", "77-", "secretx", "retx", "tx") if part in trace]


@pytest.mark.parametrize(
    "form", [quote_plus, repr, escape, json.dumps], ids=lambda one: one.__name__
)
def test_an_error_keeps_no_secret_that_a_client_has_quoted(form):
    token = "p@ss w/<rd>&"
    run = failing_with(
        f"GET https://pay.example/?t={form(token).strip(chr(34) + chr(39))}&a=1", token
    )
    assert run.failures.get().message == "GET https://pay.example/?t=***&a=1"


def test_an_error_keeps_no_credentials_of_basic_authentication():
    credentials = b64encode(f"shop:{SECRET}".encode()).decode()
    run = failing_with(f"401 for {{'Authorization': 'Basic {credentials}'}}")
    assert run.failures.get().message == "401 for {'Authorization': 'Basic ***'}"


def test_an_error_keeps_no_secret_that_its_step_has_put_into_data():
    def act(self):
        self.data["token"] = "new-secret"
        raise Abort(f"{self.data['token']} is refused")

    failing(act)
    assert StepFailure.objects.get().message == "*** is refused"


def test_an_execution_is_shown_without_its_data_and_before_it_has_any():
    execution = StepExecution.of(claim(started(token=SECRET), "pay"), "default")
    assert SECRET not in repr(execution)
    execution._claim()
    assert SECRET not in repr([execution, execution.context])


def test_an_error_is_recorded_also_of_data_that_cannot_be_looked_through():
    def act(self):
        self.data["loop"] = self.data
        self.data["loop"]["token"] = self.data["loop"]
        raise Abort(f"{SECRET} is refused")

    failing(act)
    assert StepFailure.objects.get().message == "*** is refused"


def test_of_a_class_that_is_gone_deliveries_and_payloads_are_hidden(admin_client):
    run = started()
    item = item_of(run)
    SequenceRun.objects.update(sequence="gone.Order", inbox={"approval": SECRET})
    assert SECRET not in content_of(admin_client, url_of(run))
    assert SECRET not in content_of(admin_client, url_of(run, "value", "inbox"))
    assert SECRET not in page_of_row(admin_client, item)


def test_the_list_shows_runs_that_are_removed_while_it_is_read(admin_client, monkeypatch):
    class Cards(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("token",)

        @step(each="cards", max_retries=0)
        def pack(self, item):
            raise ValueError("declined")

    run_sequence(Cards, cards=["one"], token=SECRET)

    def deepest(failures, using, _deepest=causes.deepest):
        found = _deepest(failures, using)
        SequenceRun.objects.all().delete()
        return found

    monkeypatch.setattr(causes, "deepest", deepest)
    assert admin_client.get(RUNS).status_code == 200


@pytest.mark.parametrize(
    "read",
    [
        lambda self: self.result("pay")["token"],
        lambda self: self.result("bill")["token"],
        lambda self: list(self.results("pack")),
        lambda self: [outcome.result for outcome in self.outcomes("pack")],
        lambda self: next(self.outcomes("pack")).item,
        lambda self: self.result("pin"),
        lambda self: list(self.results("loan")),
        lambda self: self.result("loan")["iban"],
    ],
)
def test_an_error_keeps_no_secret_that_its_step_has_read(read):
    class Loan(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("iban",)

        @step
        def grant(self):
            self.data["iban"] = SECRET

    class Bill(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("pay.token", "cards.number", "pack.code", "pin")

        @step(aliases=["bill"])
        def pay(self):
            return {"token": SECRET}

        @step(each="cards")
        def pack(self, item):
            return {"code": SECRET}

        @step
        def pin(self):
            return SECRET

        loan = subsequence(Loan)

        @step(max_retries=0)
        def forget(self):
            self.data.clear()

        @step(max_retries=0)
        def quote(self):
            raise ValueError(f"402 for {read(self)}, of {self.step_run.step}")

    run_sequence(Bill, cards=[{"number": SECRET}])
    failure = StepFailure.objects.get()
    assert "***" in failure.message
    assert "of quote" in failure.message
    assert SECRET not in failure.message + failure.traceback


def test_an_error_of_an_undo_keeps_no_secret_of_what_it_undoes():
    class Bill(Sequence):
        class Meta:
            app_label = "shop"
            redact = ("pack.code", "cards.number")

        @step(each="cards")
        def pack(self, item):
            return {"code": f"{SECRET}-2"}

        @pack.undo(max_retries=0)
        def unpack(self, item, result):
            raise ValueError(f"no {item['number']}, no {result['code']}")

        @step(max_retries=0)
        def quote(self):
            self.data.clear()
            raise ValueError

    run_sequence(Bill, cards=[{"number": SECRET}])
    assert StepFailure.objects.get(step="unpack").message == "no ***, no ***"


def test_a_sequence_without_secrets_does_not_look_for_them(monkeypatch):
    class Bill(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pay(self):
            return {"token": SECRET}

        @step(max_retries=0)
        def quote(self):
            raise ValueError(self.result("pay")["token"])

    monkeypatch.setattr(redaction, "secrets_of", None)
    run_sequence(Bill)
    assert StepFailure.objects.get().message == SECRET
