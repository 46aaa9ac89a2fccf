"""The functions of the hot path in PostgreSQL: where they are, and where they are not."""

import logging
from contextlib import contextmanager
from dataclasses import replace

import pytest
from django.core import checks
from django.core.management import call_command
from django.db import ProgrammingError, connection, transaction
from django.test.utils import CaptureQueriesContext

from sequences import Sequence, step
from sequences.engine import dispatcher
from sequences.engine.executor import StepExecution
from sequences.models import SequenceRun, StepRun, StoredPlan
from sequences.testing import drain
from sequences.transitions import plans
from sequences.transitions.backends.postgresql import CLAIM, INSTALLED, PostgreSQL
from tests.portable import choose

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.only_on("postgresql")]


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    choose(monkeypatch, PostgreSQL())
    yield
    connection.close()
    INSTALLED.create(connection)
    assert INSTALLED.missing(connection) == []


@pytest.fixture
def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def pay(self):
            self.data["paid"] = True

        @step
        def ship(self):
            self.data["shipped"] = True

    return Order


def execute(statement, *values):
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else None


def drop():
    """Somebody drops them, and this process does not know."""
    execute(f"DROP FUNCTION {CLAIM.name}")


@contextmanager
def role():
    """A role that may use the tables, and nothing else."""
    execute("CREATE ROLE sequences_guest")
    try:
        for kind in ("TABLES", "SEQUENCES"):
            execute(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO sequences_guest")
        execute("SET ROLE sequences_guest")
        yield
    finally:
        execute("RESET ROLE")
        execute("DROP OWNED BY sequences_guest")
        execute("DROP ROLE sequences_guest")


def calls_functions(order):
    order.start({})  # which stores the plan
    with CaptureQueriesContext(connection) as captured:
        run = order.start({}).run
        drain()
    run.refresh_from_db()
    assert (run.status, run.data) == ("succeeded", {"paid": True, "shipped": True})
    return any(f"SELECT {CLAIM.name}(" in query["sql"] for query in captured)


def test_a_migrated_database_has_them_and_they_are_called(order):
    assert INSTALLED.missing(connection) == []
    assert calls_functions(order)


def test_a_database_without_them_works_and_migrate_brings_them_back(order):
    drop()
    INSTALLED.forget("default")
    assert not calls_functions(order)
    call_command("migrate", verbosity=0)
    assert calls_functions(order)


def test_one_that_is_dropped_under_a_worker_is_replaced_by_its_statement(order):
    assert calls_functions(order)
    drop()
    calls_functions(order)  # tries, and goes on without
    assert not calls_functions(order)


def test_one_that_is_dropped_breaks_a_transaction_once_and_the_next_works(order):
    assert calls_functions(order)
    for (signature,) in execute(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'job_sequences_start%%'"
    ):
        execute(f"DROP FUNCTION {signature}")
    with pytest.raises(ProgrammingError), transaction.atomic():
        order.start({})
    with transaction.atomic():
        run = order.start({}).run
    assert SequenceRun.objects.filter(pk=run.pk).exists()


def test_a_role_that_may_not_create_them_works_without(order, caplog):
    drop()
    with role(), caplog.at_level(logging.WARNING, "sequences"):
        with transaction.atomic():
            PostgreSQL().follow_migration(connection)
            assert StoredPlan.objects.count() == 0  # the transaction is whole
        assert "Could not create the PostgreSQL functions" in caplog.text
        assert not calls_functions(order)


def test_a_role_that_may_not_call_them_works_without(order):
    execute(f"REVOKE EXECUTE ON FUNCTION {CLAIM.name} FROM PUBLIC")
    with role():
        INSTALLED.forget("default")
        assert not calls_functions(order)
    execute(f"DROP FUNCTION {CLAIM.name}")


def test_the_check_says_that_they_are_missing():
    def ids():
        return {message.id for message in checks.run_checks(databases=["default"])}

    assert "sequences.W018" not in ids()
    drop()
    assert "sequences.W018" in ids()


def test_they_go_with_the_tables(order):
    execute("CREATE SCHEMA elsewhere")
    try:
        execute("SET search_path = elsewhere")
        INSTALLED.create(connection)
        assert INSTALLED.missing(connection) == []
        PostgreSQL().follow_migration(connection)  # no tables here
        assert len(INSTALLED.missing(connection)) == 14
    finally:
        execute("SET search_path = public")
        execute("DROP SCHEMA elsewhere CASCADE")


def test_they_write_to_the_tables_of_the_schema_that_is_searched_first(order):
    order.start({})
    before = SequenceRun.objects.count()
    execute("CREATE SCHEMA tenant")
    try:
        for model in (StoredPlan, SequenceRun, StepRun):
            table = model._meta.db_table
            execute(f"CREATE TABLE tenant.{table} (LIKE public.{table} INCLUDING ALL)")
        execute("SET search_path = tenant, public")
        plans.forget()
        assert calls_functions(order)
        assert SequenceRun.objects.count() == 2
    finally:
        execute("SET search_path = public")
        execute("DROP SCHEMA tenant CASCADE")
        plans.forget()
    assert SequenceRun.objects.count() == before


def test_two_releases_have_one_each():
    later = replace(CLAIM, statement=CLAIM.statement.replace("'running'", "'started'"))
    assert later.name != CLAIM.name
    execute(later.definition)
    assert INSTALLED.missing(connection) == []
    execute(f"DROP FUNCTION {later.name}")


def test_no_plan_that_was_made_on_empty_tables_reads_a_whole_one(order):
    for model in (StepRun, SequenceRun, StoredPlan):
        execute(f"TRUNCATE {model._meta.db_table} CASCADE")
        execute(f"VACUUM ANALYZE {model._meta.db_table}")
    plans.forget()
    assert calls_functions(order)
    before = scans()
    with dispatcher.capture_dispatches() as ready:
        order.start_many([{}] * 20)
    for dispatch in ready:
        for following in StepExecution(dispatch.step_run_id, 0, "default").live():
            StepExecution(following.step_run_id, 0, "default").live()
    assert scans() == before
    assert SequenceRun.objects.filter(status="succeeded").count() == 22


def scans():
    """How often the table of step runs was read as a whole."""
    execute("SELECT pg_stat_force_next_flush()")
    execute("SELECT 1")
    execute("SELECT pg_stat_clear_snapshot()")
    return execute(
        "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = %s", StepRun._meta.db_table
    )


# --- which index a kept plan uses, whatever PostgreSQL knew when it made it

#: Those that find one row, or the rows of one key.
OF_ONE_ROW = {
    "job_sequences_sequencerun_pkey", "job_sequences_steprun_pkey", "job_sequences_step_run_once",
    "job_sequences_storedplan_pkey", "job_sequences_plan_once", "job_sequences_run_key",
    "job_sequences_run_key_once",
}  # fmt: skip


def new(order):
    """Nobody has looked at the tables yet."""


def analyzed_while_empty(order):
    execute("ANALYZE")


def analyzed_at_rest(order):
    """No run was unfinished, and no step was due."""
    order.start_many([({}, {"key": f"{number}"}) for number in range(400)])
    SequenceRun.objects.update(status="succeeded", active_key=None)
    StepRun.objects.update(status="succeeded", wake_at=None)
    execute("ANALYZE")


def analyzed_before_this_sequence(order):
    analyzed_at_rest(order)
    SequenceRun.objects.update(sequence="shop.Older")
    execute("ANALYZE")


def indexes_in(function):
    """The indexes of the plan that a session would keep of this function's body."""
    (values,) = execute(
        "SELECT pronargs, array_to_string(proargtypes::regtype[], ', ') FROM pg_proc "
        "WHERE proname = %s", function.name,
    )  # fmt: skip
    count, types = values
    execute("SET enable_seqscan = off")
    execute("SET plan_cache_mode = force_generic_plan")
    try:
        execute(f"PREPARE kept ({types}) AS {function._body}".replace("%", "%%"))
        arguments = ", ".join(["NULL"] * count)
        ((plan,),) = execute(f"EXPLAIN (FORMAT JSON) EXECUTE kept ({arguments})")
    finally:
        execute("DEALLOCATE ALL")
        execute("RESET ALL")
    return set(named(plan, "Index Name"))


def named(plan, name):
    """All values of this name, however deep they are."""
    if isinstance(plan, list):
        for each in plan:
            yield from named(each, name)
    elif isinstance(plan, dict):
        yield from [value for key, value in plan.items() if key == name]
        yield from named(list(plan.values()), name)


@pytest.mark.parametrize(
    "known", [new, analyzed_while_empty, analyzed_at_rest, analyzed_before_this_sequence]
)
@pytest.mark.parametrize("function", INSTALLED._functions, ids=lambda function: function.purpose)
def test_a_kept_plan_finds_its_rows_by_their_keys(order, known, function):
    """An index on what is unfinished seems as good as a key while hardly anything is."""
    known(order)
    used = indexes_in(function)
    assert used
    assert used <= OF_ONE_ROW
