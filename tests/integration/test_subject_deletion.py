"""What deleting an object does to the runs about it: what the project says, in the delete's own
transaction."""

from datetime import timedelta
from unittest.mock import patch

import pytest
from django.core.checks import run_checks
from django.db import connection, transaction
from django.db.models.signals import post_delete
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from dramatiq.middleware import SkipMessage

from sequences import Sequence, event, every, on_cancel, start_definition, step, subsequence
from sequences.engine import subjects
from sequences.exceptions import InvalidDefinition
from sequences.flows.jobs import job
from sequences.models import (
    Operation,
    RunSubject,
    Schedule,
    ScheduleOperation,
    SequenceRun,
)
from sequences.testing import clock, drain
from sequences.transitions import erasing, pruning
from sequences.transitions import subjects as subject_rows
from sequences.transitions.pruning import Due
from sequences.worker.sweeper import AssumeLost, sweep
from tests.engine import claim, fresh, perform
from tests.locks import held
from tests.models import Country, Customer, Express, Insured, Parcel

pytestmark = pytest.mark.django_db(transaction=True)


def of_parcels(policy, **more):
    models = {"tests.Parcel": policy, **more}
    return override_settings(SEQUENCES={"ON_SUBJECT_DELETE": models})


@pytest.fixture
def parcel():
    return Parcel.objects.create(name="book")


def delivery(name="Delivery", **meta):
    class Base(Sequence):
        class Meta:
            abstract = True

        @step
        def pack(self):
            return {"packed": True}

        pick_up = event()

        @step
        def carry(self): ...

    body = {"Meta": type("Meta", (), {"app_label": "shop", **meta})}
    return type(Base)(name, (Base,), body | {"__module__": __name__, "__qualname__": name})


def sweep_now():
    return sweep(AssumeLost(), "default")


def test_by_default_the_runs_stay_as_they_are(parcel):
    run = delivery().start(subject=parcel).run
    parcel.delete()
    drain()
    assert fresh(run).status == "running"
    assert RunSubject.objects.get().erase_at is None


def test_models_that_the_settings_do_not_name_cost_nothing():
    assert not post_delete.has_listeners(Parcel)
    with of_parcels("cancel"):
        assert post_delete.has_listeners(Parcel)
        assert post_delete.has_listeners(Express)
        assert not post_delete.has_listeners(Customer)
    assert not post_delete.has_listeners(Parcel)


@of_parcels("cancel")
def test_an_unfinished_run_is_cancelled(parcel):
    cls = delivery()
    run, other = cls.start(subject=parcel).run, cls.start(subject=Parcel.objects.create()).run
    finished = cls.start(subject=parcel).run
    finished.finish()
    parcel.delete()
    assert fresh(run).status == "cancelled"
    assert (fresh(other).status, fresh(finished).status) == ("running", "succeeded")
    operation = Operation.objects.get(run=run)
    assert operation.action == "cancel"
    assert operation.reason == "The subject of the run was deleted."
    drain()
    assert not fresh(run).steps.filter(status="succeeded").exists()


@of_parcels("cancel")
@pytest.mark.parametrize(
    "delete",
    [
        lambda pk: Parcel.objects.filter(pk=pk).delete(),
        lambda pk: Express.objects.get(pk=pk).delete(),
        lambda pk: Parcel.objects.get(pk=pk).delete(),
    ],
    ids=["a queryset", "a proxy", "an instance"],
)
def test_however_it_is_deleted(parcel, delete):
    run = delivery().start(subject=parcel).run
    delete(parcel.pk)
    assert fresh(run).status == "cancelled"


@of_parcels("cancel")
def test_a_parent_row_goes_with_that_of_its_child():
    insured = Insured.objects.create()
    run = delivery().start(subject=insured.parcel_ptr).run
    insured.delete()
    assert fresh(run).status == "cancelled"


@of_parcels("cancel")
def test_a_delete_that_is_rolled_back_cancels_and_erases_nothing(parcel):
    run = delivery().start(subject=parcel).run
    with transaction.atomic():
        parcel.delete()
        assert SequenceRun.objects.get().status == "cancelled"
        transaction.set_rollback(True)
    assert fresh(run).status == "running"
    assert not Operation.objects.exists()


@of_parcels("cancel")
def test_a_step_that_is_running_meanwhile_loses_its_commit(parcel):
    run = delivery().start(subject=parcel).run
    lost = claim(run, "pack")
    parcel.delete()
    with pytest.raises(SkipMessage, match="lost its claim"):
        perform(lost)
    assert fresh(run).status == "cancelled"
    assert fresh(run).steps.get().status == "cancelled"


@of_parcels("cancel")
def test_what_the_class_does_at_a_cancel_is_done(parcel):
    class Delivery(Sequence):
        class Meta:
            app_label = "shop"
            cancel = "undo"

        @step
        def pack(self): ...

        @pack.undo
        def unpack(self):
            self.data["unpacked"] = True

        pick_up = event()

        @on_cancel
        def tell(self):
            self.data["told"] = True

    run = Delivery.start(subject=parcel).run
    drain()
    parcel.delete()
    assert fresh(run).status == "undoing"
    drain()
    assert fresh(run).status == "cancelled"
    assert fresh(run).data == {"unpacked": True, "told": True}


@of_parcels("cancel")
def test_a_parent_and_its_child_about_the_same_object(parcel):
    child = delivery()

    class Order(Sequence):
        class Meta:
            app_label = "shop"

        ship = subsequence(child, subject=lambda self: self.subject)

    Order.start(subject=parcel)
    drain()
    assert SequenceRun.objects.about(parcel).unfinished().count() == 2
    parcel.delete()
    assert set(SequenceRun.objects.values_list("status", flat=True)) == {"cancelled"}


@of_parcels("cancel")
def test_a_run_that_ends_meanwhile_is_left_alone(parcel):
    run = delivery().start(subject=parcel).run
    rows = subject_rows.runs_about(run.subject_key, "default")
    run.finish()
    with patch("sequences.transitions.subjects.runs_about", return_value=rows):
        parcel.delete()
    assert fresh(run).status == "succeeded"


@of_parcels("erase")
def test_erasing_takes_all_and_the_name_of_the_object_too(parcel):
    cls = delivery()
    run = cls.start({"secret": 1}, subject=parcel, key="a").run
    finished = cls.start({"secret": 2}, subject=parcel).run
    finished.finish()
    drain()
    parcel.delete()
    assert fresh(run).status == "cancelled"
    assert fresh(finished).data == {"secret": 2}, "the sweep does that"
    sweep_now()
    for each in (run, finished):
        assert fresh(each).data == {}
        assert fresh(each).subject_key is None
        assert not each.steps.filter(result__isnull=False).exists()
        assert [op.action for op in each.operations.order_by("pk")][-1:] == ["erase"]
    assert fresh(run).key is None


@of_parcels("erase")
def test_a_run_that_is_still_undone_is_erased_when_that_is_over(parcel, caplog):
    class Delivery(Sequence):
        class Meta:
            app_label = "shop"
            cancel = "undo"

        @step
        def pack(self):
            self.data["packed"] = True

        @pack.undo
        def unpack(self):
            assert self.data["packed"]

        pick_up = event()

    run = Delivery.start(subject=parcel).run
    drain()
    parcel.delete()
    with clock() as moving:
        sweep_now()
        assert (fresh(run).status, fresh(run).data) == ("undoing", {"packed": True})
        assert not caplog.records, "nothing is wrong with that"
        perform(claim(run, "unpack"))
        assert fresh(run).status == "cancelled"
        sweep_now()
        assert fresh(run).data == {"packed": True}, "it is looked at again in a while"
        moving.move(timedelta(minutes=1))
        sweep_now()
    assert fresh(run).data == {}
    assert not RunSubject.objects.exists()


@of_parcels("erase")
def test_a_process_that_dies_while_it_erases_loses_nothing(parcel):
    run = delivery().start({"secret": 1}, subject=parcel).run
    parcel.delete()
    dies = patch.object(erasing, "blank", side_effect=KeyboardInterrupt)
    with dies, pytest.raises(KeyboardInterrupt):
        sweep_now()
    assert fresh(run).data == {"secret": 1}
    sweep_now()
    assert fresh(run).data == {}
    sweep_now()
    assert [op.action for op in run.operations.order_by("pk")] == ["cancel", "erase"]


@of_parcels("erase")
def test_one_that_cannot_be_erased_costs_the_others_nothing(parcel, caplog):
    cls = delivery()
    bad, good = cls.start({"n": 1}, subject=parcel).run, cls.start({"n": 2}, subject=parcel).run
    parcel.delete()
    real = erasing.blank

    def blank(run_ids, *args, **kwargs):
        if bad.pk in run_ids:
            raise ZeroDivisionError
        real(run_ids, *args, **kwargs)

    with patch.object(erasing, "blank", blank):
        sweep_now()
    assert (fresh(bad).data, fresh(good).data) == ({"n": 1}, {})
    assert "could not erase run" in caplog.text
    with clock() as moving:
        moving.move(timedelta(minutes=1))
        sweep_now()
    assert fresh(bad).data == {}


@pytest.mark.only_on("postgresql", "mysql")
@of_parcels("erase")
def test_the_sweep_waits_for_no_run_that_somebody_has_locked(parcel):
    cls = delivery()
    locked, free = cls.start({"n": 1}, subject=parcel).run, cls.start({"n": 2}, subject=parcel).run
    parcel.delete()
    row = SequenceRun.objects.select_for_update().filter(pk=locked.pk)
    with held(row.get):
        sweep_now()
        assert (fresh(locked).data, fresh(free).data) == ({"n": 1}, {})
    with clock() as moving:
        moving.move(timedelta(minutes=1))
        sweep_now()
    assert fresh(locked).data == {}


def test_a_class_may_say_otherwise(parcel):
    audit = delivery("Audit", on_subject_delete="keep").start({"n": 1}, subject=parcel).run
    plain = delivery("Plain").start({"n": 2}, subject=parcel).run
    strict = delivery("Strict", on_subject_delete="erase").start({"n": 3}, subject=parcel).run
    with of_parcels("cancel"):
        parcel.delete()
        drain()
    assert (fresh(audit).status, fresh(plain).status) == ("running", "cancelled")
    assert (fresh(plain).data, fresh(strict).data) == ({"n": 2}, {})


@of_parcels("cancel")
def test_a_definition_that_is_data_follows_the_settings(parcel):
    @job("parcels.carry")
    def carry(sequence): ...

    steps = [{"name": "carry", "job": "parcels.carry"}]
    run = start_definition({"steps": steps}, {}, subject=parcel).run
    parcel.delete()
    assert fresh(run).status == "cancelled"


@of_parcels("cancel")
def test_a_run_whose_class_is_gone_is_cancelled_as_well(parcel):
    run = delivery().start(subject=parcel).run
    SequenceRun.objects.update(sequence="shop.Gone")
    parcel.delete()
    assert fresh(run).status == "cancelled"


@of_parcels("cancel")
def test_an_object_without_runs_costs_two_queries_more(parcel):
    with CaptureQueriesContext(connection) as caught:
        parcel.delete()
    ours = [each for each in caught if "job_sequences" in each["sql"]]
    assert len(ours) == 2, "for its runs, and for its schedules"


@of_parcels("keep", **{"tests.Country": "erase"})
def test_an_object_whose_key_is_too_long_to_be_a_subject_can_be_deleted():
    Country.objects.create(code="x" * 300).delete()
    assert not Country.objects.exists()


@of_parcels("erase")
def test_the_number_of_runs_changes_nothing_for_who_deletes(parcel):
    cls = delivery()
    for run in cls.start_many([({}, {"subject": parcel})] * 20):
        run.run.finish()
    with CaptureQueriesContext(connection) as caught:
        parcel.delete()
    assert len([each for each in caught if "job_sequences" in each["sql"]]) == 3
    drain()
    assert not RunSubject.objects.exists()


def test_a_person_who_erases_a_run_erases_the_name_of_its_object_too(parcel):
    cls = delivery()
    run, keeps = cls.start(subject=parcel).run, cls.start(subject=parcel, key="a").run
    for each in (run, keeps):
        each.finish()
    run.erase()
    keeps.erase(keep_key=True)
    assert (run.subject, keeps.subject) == (None, parcel)
    assert list(SequenceRun.objects.about(parcel)) == [keeps]


def test_what_is_pruned_leaves_nothing_behind(parcel):
    run = delivery().start(subject=parcel).run
    run.finish()
    pruning.remove([run.pk], Due("succeeded", fresh(run).finished_at), "default")
    assert not SequenceRun.objects.exists()
    assert not RunSubject.objects.exists()


@override_settings(
    SEQUENCES={"ON_SUBJECT_DELETE": {"tests.Gone": "erase", "tests.Express": "keep"}}
)
def test_a_model_that_does_not_exist_is_an_error():
    errors = [error for error in run_checks() if error.id == "sequences.E015"]
    assert [error.msg for error in errors] == [
        "SEQUENCES['ON_SUBJECT_DELETE'] names 'tests.gone', but there is no such model.",
        "SEQUENCES['ON_SUBJECT_DELETE'] names 'tests.express', but it is a proxy.",
    ]


@pytest.mark.parametrize("value", [["tests.Parcel"], {"Parcel": "keep"}, {"tests.Parcel": "drop"}])
def test_a_setting_that_cannot_be_is_an_error_and_no_crash(value):
    with override_settings(SEQUENCES={"ON_SUBJECT_DELETE": value}):
        errors = [error for error in run_checks() if error.id == "sequences.E002"]
        assert "ON_SUBJECT_DELETE" in errors[0].msg
        assert "'keep', 'cancel', 'erase'" in errors[0].msg


def test_a_class_that_hears_of_no_deletion_is_a_warning():
    delivery(on_subject_delete="erase")
    ids = [warning.id for warning in run_checks()]
    assert "sequences.W021" in ids
    with of_parcels("keep"):
        assert "sequences.W021" not in [warning.id for warning in run_checks()]


def test_a_class_that_says_what_cannot_be_is_refused():
    with pytest.raises(InvalidDefinition, match='"keep", "cancel", "erase"'):
        delivery(on_subject_delete="drop")


def test_in_another_database_it_waits_for_the_commit(parcel):
    with of_parcels("cancel"), patch("sequences.conf.using", return_value="runs"):
        with patch.object(subjects, "_decide") as decide, transaction.atomic():
            parcel.delete()
            assert not decide.called
        assert decide.call_args.args[1] == "runs"


@pytest.mark.parametrize(("policy", "left"), [("keep", 2), ("cancel", 1), ("erase", 1)])
def test_a_schedule_that_was_made_for_the_object_is_removed(parcel, policy, left):
    cls = delivery()
    hour = every(timedelta(hours=1))
    made = cls.schedules.create("mine", hour, data={"n": 1}, subject=parcel, reason="secret")
    cls.schedules.create("other", hour, subject=Parcel.objects.create())
    with of_parcels(policy):
        with transaction.atomic():
            parcel.delete()
            transaction.set_rollback(True)
        assert Schedule.objects.count() == 2
        Parcel.objects.get(pk=int(made.subject_key.pk)).delete()
    assert Schedule.objects.count() == left
    log = list(ScheduleOperation.objects.filter(schedule=made.pk).order_by("pk"))
    assert [each.action for each in log] == ["create", "remove"][: 3 - left]
    assert (log[0].after is None, log[0].reason) == (
        (True, "") if policy == "erase" else (False, "secret")
    )
