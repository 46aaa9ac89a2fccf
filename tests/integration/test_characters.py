"""What a database cannot store of a text is stored escaped, and never lost with what it tells."""

import pytest
from django.core.checks import run_checks
from django.db import DataError, connection

from sequences import Sequence, step
from sequences.exceptions import SequenceError
from sequences.models import ExactCharField, Operation, SequenceRun, StepFailure
from sequences.testing import drain
from tests.engine import fresh

pytestmark = pytest.mark.django_db(transaction=True)
on_mysql = pytest.mark.only_on("mysql")


def collation_of(field):
    return field.db_parameters(connection).get("collation")


def change_texts(model, character_set, collation=""):
    """As the tables of a database are that has this character set."""
    texts = [
        field
        for field in model._meta.local_fields
        if field.get_internal_type() in ("CharField", "TextField")
        and (field.name == "key" or not isinstance(field, ExactCharField))
    ]
    changes = ", ".join(
        f"MODIFY {connection.ops.quote_name(field.column)} {field.db_type(connection)} "
        f"CHARACTER SET {character_set} {collation or own_collation(field, character_set)} "
        f"{'NULL' if field.null else 'NOT NULL'}"
        for field in texts
    )
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {model._meta.db_table} {changes}")


def own_collation(field, character_set):
    exact = collation_of(field)
    return f"COLLATE {exact}" if exact and character_set == "utf8mb4" else ""


@pytest.fixture
def _utf8mb3():
    models = (StepFailure, Operation, SequenceRun)
    for model in models:
        change_texts(model, "utf8mb3")
    yield
    SequenceRun.objects.all().delete()
    for model in models:
        change_texts(model, "utf8mb4")


class Oops(Exception):
    pass


@pytest.fixture
def failing():
    class Failing(Sequence):
        class Meta:
            app_label = "shop"

        @step(max_retries=1, min_backoff=10)
        def one(self):
            raise Oops("the crème 😀 is off")

    return Failing


@on_mysql
@pytest.mark.usefixtures("_utf8mb3")
def test_an_attempt_is_recorded_whose_error_has_a_character_that_the_table_has_not(failing):
    run = failing.start().run
    drain()
    assert fresh(run).status == "failed"
    failures = list(run.failures.all())
    assert [failure.message for failure in failures] == ["the crème \\U0001f600 is off"] * 2
    assert all("\\U0001f600" in failure.traceback for failure in failures)
    assert [row.lost_workers for row in run.steps.all()] == [0]


@on_mysql
@pytest.mark.usefixtures("_utf8mb3")
def test_a_reason_is_kept_that_has_a_character_that_the_table_has_not(failing):
    run = failing.start().run
    run.pause(by="Zoë 😀" * 30, reason="because 😀, très bien")
    operation = run.operations.get()
    assert fresh(run).status == "paused"
    assert operation.reason == "because \\U0001f600, très bien"
    assert operation.by.startswith("Zoë \\U0001f600")
    assert len(operation.by) == 150


@on_mysql
@pytest.mark.usefixtures("_utf8mb3")
@pytest.mark.parametrize("in_bulk", [False, True])
def test_a_key_that_cannot_be_stored_is_refused_and_never_changed(failing, in_bulk):
    options = {"key": "order 😀"}
    with pytest.raises(SequenceError, match="cannot store a character of the key"):
        failing.start_many([({}, options)]) if in_bulk else failing.start({}, **options)
    assert not SequenceRun.objects.exists()
    assert failing.start({}, key="crème").created


@on_mysql
def test_in_tables_of_utf8mb4_all_is_stored_as_it_is(failing):
    run = failing.start({}, key="order 😀").run
    run.pause(reason="because 😀")
    run.resume()
    drain()
    assert run.failures.first().message == "the crème 😀 is off"
    assert run.operations.first().reason == "because 😀"
    assert fresh(run).key == "order 😀"


class Untranslatable(Exception):
    sqlstate = "22P05"


@pytest.mark.parametrize(
    ("refuses", "message"),
    [("😀", "the crème \\U0001f600 is off"), ("è", "the cr\\xe8me \\U0001f600 is off")],
)
def test_a_database_of_a_smaller_character_set_gets_as_much_as_it_takes(
    failing, monkeypatch, refuses, message
):
    # As PostgreSQL does with the encoding LATIN1, or SQL_ASCII: its error, at the statement.
    save = StepFailure.save

    def refuse(self, *arguments, **options):
        if refuses in self.message:
            raise DataError("no equivalent in encoding") from Untranslatable()
        return save(self, *arguments, **options)

    monkeypatch.setattr(StepFailure, "save", refuse)
    run = failing.start().run
    drain()
    assert {failure.message for failure in run.failures.all()} == {message}


def checked():
    messages = run_checks(databases=["default"])
    return {message.id: message for message in messages if message.id in CHARACTER_CHECKS}


CHARACTER_CHECKS = ("sequences.W016", "sequences.W017")


def test_the_check_is_content_with_a_database_that_stores_everything():
    assert checked() == {}


@on_mysql
@pytest.mark.usefixtures("_utf8mb3")
def test_the_check_names_the_columns_that_cannot_store_every_character():
    found = checked()
    assert "job_sequences_stepfailure.message uses utf8mb3" in found["sequences.W016"].msg
    assert "job_sequences_operation.reason uses utf8mb3" in found["sequences.W016"].msg
    assert "utf8mb4" in found["sequences.W016"].hint
    assert "job_sequences_sequencerun.key" in found["sequences.W017"].msg
    collation = "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"
    assert collation in found["sequences.W017"].hint


@on_mysql
def test_the_check_sees_a_collation_in_which_keys_are_equal_that_are_not():
    change_texts(SequenceRun, "utf8mb4", "COLLATE utf8mb4_general_ci")
    try:
        assert "job_sequences_sequencerun.key" in checked()["sequences.W017"].msg
        assert "sequences.W016" not in checked()
    finally:
        change_texts(SequenceRun, "utf8mb4")
    assert checked() == {}
