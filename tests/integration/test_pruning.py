from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.db.models import DO_NOTHING
from django.db.models.signals import post_delete
from django.test.utils import CaptureQueriesContext

from sequences import Sequence, step, subsequence
from sequences.engine import pruning
from sequences.engine.pruning import REFERRED_TO, REFUSED, TAKEN, YOUNG, prune
from sequences.exceptions import InvalidTransition
from sequences.models import (
    LimitKey,
    Operation,
    Permit,
    RunDeadline,
    RunSubject,
    Schedule,
    SequenceRun,
    StepCall,
    StepFailure,
    StepLoss,
    StepRun,
    StoredLimit,
    StoredPlan,
)
from sequences.testing import drain
from sequences.transitions import pruning as transitions
from sequences.transitions.locking import lock_run
from tests.engine import claim, fail, fresh, now
from tests.models import Line, Receipt

pytestmark = pytest.mark.django_db
MONTH = timedelta(days=30)
TABLES = (SequenceRun, StepRun, StepFailure, StepLoss, Operation)


@pytest.fixture(autouse=True)
def _month(settings):
    settings.SEQUENCES = {**settings.SEQUENCES, "RETENTION": MONTH}


def chain(name="Chain", app_label="shop", **options):
    def one(self):
        pass

    def two(self):
        pass

    meta = type("Meta", (), {"app_label": app_label, **options})
    return type(Sequence)(name, (Sequence,), {"Meta": meta, "one": step(one), "two": step(two)})


def family():
    """A parent, a child, and a grandchild."""

    class Youngest(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def last(self): ...

    class Middle(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Youngest)

    class Eldest(Sequence):
        class Meta:
            app_label = "shop"

        below = subsequence(Middle, each=lambda self: [{}, {}])

    return Eldest


def ended(cls, age=2 * MONTH, status="succeeded"):
    """A run that came to this end so long ago, with all of its children."""
    run = cls.start({"n": 1}, key=uuid4().hex).run
    if status == "succeeded":
        drain()
    elif status == "cancelled":
        run.cancel()
    else:
        fail(claim(run, "one"))
    grow_old(run, age)
    run = fresh(run)
    assert run.status == status
    return run


def grow_old(run, age):
    began = now() - age
    for one in members(run):
        SequenceRun.objects.filter(pk=one).update(created_at=began, finished_at=began)


def members(run):
    found = [run.pk]
    for pk in found:
        below = SequenceRun.objects.filter(parent__run=pk)
        found += below.values_list("pk", flat=True)
    return found


def left():
    return set(SequenceRun.objects.values_list("pk", flat=True))


def orphans():
    """Rows of runs that are not there."""
    rows = (StepRun, StepFailure, StepLoss, Operation)
    return [model for model in rows if model.objects.exclude(run__in=left()).exists()]


# --- what is due


def test_finished_runs_go_when_their_retention_is_over_with_all_that_they_had():
    cls = chain()
    old, young = ended(cls, MONTH + timedelta(hours=1)), ended(cls, MONTH - timedelta(hours=1))
    running = cls.start({}).run
    SequenceRun.objects.filter(pk=running.pk).update(created_at=now() - 9 * MONTH)
    cancelled = ended(cls, status="cancelled")
    assert cancelled.operations.exists()
    report = prune()
    assert (report.runs, report.trees, report.remaining) == ({"shop.Chain": 2}, 2, [])
    assert left() == {young.pk, running.pk}
    assert not StepRun.objects.filter(run=old.pk).exists()
    assert orphans() == []


def fill_parts(run):
    """A row in each table that has rows of a run."""
    moment, own = now(), {"run": run}
    of_step = {**own, "step_run": run.steps.first()}
    limit = StoredLimit.objects.create(name=uuid4().hex)
    line = LimitKey.objects.create(limit=limit, granted_at=moment)
    Operation.objects.create(**own, action="pause", done_at=moment)
    Permit.objects.create(**own, line=line, state="granted", ready_at=moment)
    RunDeadline.objects.create(**own, due_at=moment)
    RunSubject.objects.create(**own, model="auth.user", object_id="7")
    StepCall.objects.create(**of_step, name="pay", called_at=moment)
    StepFailure.objects.create(**of_step, step="one", attempt=1, error="E", failed_at=moment)
    StepLoss.objects.create(**of_step, step="one", worker="w", lost_at=moment)


def test_all_that_belongs_to_a_run_goes_with_it_and_nothing_of_its_neighbour():
    cls = chain()
    old, young = ended(cls), ended(cls, MONTH - timedelta(hours=1))
    fill_parts(old)
    fill_parts(young)
    parts = {
        relation.related_model
        for relation in SequenceRun._meta.related_objects
        if relation.on_delete is not DO_NOTHING
    }
    ours = {model for model in parts if model._meta.app_label == "job_sequences"}
    assert prune().trees == 1
    assert len(ours) == 8
    for model in ours:
        rows = model._base_manager.values_list("run", flat=True)
        assert set(rows) == {young.pk}, model


def test_no_run_is_loaded_for_a_key_that_does_nothing_when_it_is_deleted():
    """Nor for our own tables, which are deleted without being asked."""
    relations = list(transitions._relations(SequenceRun))
    assert Schedule in {each.related_model for each in relations}
    asked = {each.related_model for each in relations if transitions._is_of_the_project(each)}
    assert Schedule not in asked
    assert not any(model._meta.app_label == "job_sequences" for model in asked)


@pytest.mark.only_on("postgresql")
def test_the_statements_of_a_batch_do_not_grow_with_it():
    cls = chain()
    for _ in range(9):
        ended(cls)
    with CaptureQueriesContext(connection) as one:
        prune(batch=1)
    for _ in range(9):
        ended(cls)
    with CaptureQueriesContext(connection) as all_at_once:
        prune(batch=100)
    deletions = [query for query in all_at_once if "DELETE FROM" in query["sql"]]
    assert len([query for query in deletions if "steprun" in query["sql"]]) == 1
    assert len(all_at_once) < len(one) / 4


def test_without_a_retention_nothing_goes(settings):
    settings.SEQUENCES = {}
    kept = ended(chain())
    report = prune()
    assert not report.has_retention
    assert left() == {kept.pk}


def test_failed_runs_are_kept_for_ever_unless_they_have_a_retention_of_their_own(settings):
    cls = chain()
    older, newer = ended(cls, 5 * MONTH, "failed"), ended(cls, 3 * MONTH, "failed")
    prune()
    prune(older_than=MONTH)
    assert left() == {older.pk, newer.pk}
    settings.SEQUENCES = {"RETENTION": MONTH, "RETENTION_FAILED": 4 * MONTH}
    prune()
    assert left() == {newer.pk}
    assert orphans() == []
    prune(failed_older_than=2 * MONTH)
    assert left() == set()


def test_failed_runs_never_go_before_the_others():
    kept = ended(chain(retention=6 * MONTH), 4 * MONTH, "failed")
    prune(failed_older_than=MONTH)
    assert left() == {kept.pk}


def test_the_retention_of_a_sequence_goes_before_the_settings():
    kept = ended(chain("Long", retention=6 * MONTH, aliases=["shop.Former"]))
    former = ended(chain("Other"), 4 * MONTH)
    SequenceRun.objects.filter(pk=former.pk).update(sequence="shop.Former")
    for_ever = ended(chain("Ever", retention=None), 90 * MONTH)
    gone = ended(chain("Short", retention=timedelta(days=1)), timedelta(days=2))
    prune(older_than=3 * MONTH)
    assert gone.pk not in left()
    assert left() == {kept.pk, former.pk, for_ever.pk}


def test_a_sequence_that_is_named_is_pruned_as_it_is_asked():
    named, other = ended(chain("Long", retention=6 * MONTH)), ended(chain("Other"))
    assert prune(sequence="shop.Long").trees == 0
    assert prune(sequence="shop.Long", older_than=MONTH).runs == {"shop.Long": 1}
    assert named.pk not in left()
    assert other.pk in left()


def test_of_a_sequence_that_this_code_does_not_know_the_settings_decide():
    cls = chain(retention=6 * MONTH)
    run = ended(cls)
    SequenceRun.objects.filter(pk=run.pk).update(sequence="gone.Sequence")
    assert prune().runs == {"gone.Sequence": 1}


def test_the_failed_runs_of_a_sequence_can_have_a_retention_of_their_own():
    ended(chain(retention_failed=3 * MONTH), 4 * MONTH, "failed")
    prune()
    assert left() == set()


def test_it_goes_batch_by_batch_past_what_it_keeps():
    cls = chain()
    runs = [ended(cls) for _ in range(7)]
    same = now() - 2 * MONTH
    SequenceRun.objects.update(created_at=same, finished_at=same)
    Receipt.objects.create(protects=runs[0])
    Receipt.objects.create(protects=runs[3])
    report = prune(batch=2)
    assert report.trees == 5
    assert left() == {runs[0].pk, runs[3].pk}


def test_a_key_is_free_again_when_its_run_is_gone():
    cls = chain()
    key = ended(cls).key
    assert not cls.start({}, key=key).created
    prune()
    assert cls.start({}, key=key).created


def test_plans_stay_for_other_processes_know_them_by_their_ids():
    ended(chain())
    prune()
    assert StoredPlan.objects.count() == 1


def test_a_dry_run_tells_the_same_and_removes_nothing():
    cls = chain()
    runs = [ended(cls), ended(cls)]
    receipt = Receipt.objects.create(goes_with=runs[0])
    Receipt.objects.create(protects=runs[1])
    report = prune(dry_run=True)
    assert (report.runs, report.trees) == ({"shop.Chain": 1}, 1)
    assert [one.by for one in report.remaining] == [{"tests.Receipt": 1}]
    assert left() == {run.pk for run in runs}
    assert Receipt.objects.filter(pk=receipt.pk).exists()


# --- trees


def test_a_tree_goes_whole_with_children_of_every_depth():
    run = ended(family())
    assert len(members(run)) == 5
    report = prune()
    assert report.runs == {"shop.Eldest": 1, "shop.Middle": 2, "shop.Youngest": 2}
    assert (report.trees, left(), StepRun.objects.count()) == (1, set(), 0)


def test_a_child_does_not_go_without_its_parent():
    run = ended(family())
    SequenceRun.objects.filter(pk=run.pk).update(finished_at=now())
    assert prune().trees == 0
    assert len(left()) == 5


@pytest.mark.parametrize("state", ["running", "young"])
def test_a_tree_stays_whole_while_a_run_deep_in_it_has_not_been_finished_for_long(state):
    run, other = ended(family()), ended(chain())
    deepest = SequenceRun.objects.filter(pk=members(run)[-1])
    if state == "running":
        deepest.update(status="running", finished_at=None)
    else:
        deepest.update(finished_at=now() - timedelta(days=1))
    report = prune()
    assert [(one.run, one.why) for one in report.remaining] == [(run.pk, YOUNG)]
    assert other.pk not in left()
    assert len(left()) == 5


def test_children_that_a_restart_has_parted_go_by_themselves():
    run = ended(family())
    run.restart_from("below")
    parted = SequenceRun.objects.filter(parent=None, status="succeeded")
    assert parted.count() == 2
    assert prune().runs == {"shop.Middle": 2, "shop.Youngest": 2}
    assert run.pk in left()


def test_trees_with_many_children_go_in_transactions_of_their_own(monkeypatch):
    eldest, cls = family(), chain()
    runs = [ended(eldest, 3 * MONTH) for _ in range(3)] + [ended(cls) for _ in range(4)]
    sizes = []
    delete = transitions._delete

    def note(ids, using):
        sizes.append(len(ids))
        delete(ids, using)

    monkeypatch.setattr(transitions, "_delete", note)
    monkeypatch.setattr(transitions, "MAX_CHILDREN_PER_TRANSACTION", 3)
    assert len(members(runs[0])) == 5  # one tree may have more: it goes whole
    assert prune(dry_run=True).trees == 7
    assert prune().trees == 7
    assert sizes == [5, 5, 5, 4]
    assert (left(), orphans()) == (set(), [])


def test_a_crash_in_the_midst_of_a_batch_leaves_the_earlier_ones_done_and_no_half(monkeypatch):
    cls = chain()
    runs = sorted(ended(cls, 3 * MONTH - timedelta(hours=n)).pk for n in range(4))
    delete = transitions._delete

    def crash(ids, using):
        delete(ids, using)
        if runs[2] in ids:
            raise KeyboardInterrupt

    monkeypatch.setattr(transitions, "_delete", crash)
    with pytest.raises(KeyboardInterrupt):
        prune(batch=2)
    assert left() == set(runs[2:])
    assert StepRun.objects.count() == 4
    monkeypatch.undo()
    assert prune(older_than=MONTH).trees == 2


# --- what the project's models have of them


@pytest.mark.parametrize("field", ["forgets", "defaults"])
def test_a_key_that_can_be_emptied_is_emptied(field):
    receipt = Receipt.objects.create(**{field: ended(chain())})
    assert prune().trees == 1
    receipt.refresh_from_db()
    assert getattr(receipt, f"{field}_id") is None


def test_a_key_that_does_nothing_is_left_as_it_is():
    run = ended(chain())
    receipt = Receipt.objects.create(ignores=run)
    assert prune().trees == 1
    receipt.refresh_from_db()
    assert receipt.ignores_id == run.pk


def test_what_cascades_goes_along_and_its_signals_are_sent():
    run = ended(chain())
    receipt = Receipt.objects.create(goes_with=run)
    Line.objects.create(receipt=receipt)
    of_step = Receipt.objects.create(goes_with_step=run.steps.get(step="one"))
    other = Receipt.objects.create()
    deleted = []

    def note(instance, **_):
        deleted.append(instance.pk)

    post_delete.connect(note, sender=Receipt)
    try:
        prune()
    finally:
        post_delete.disconnect(note, sender=Receipt)
    assert sorted(deleted) == [receipt.pk, of_step.pk]
    assert list(Receipt.objects.all()) == [other]
    assert not Line.objects.exists()
    assert left() == set()


def test_what_protects_a_run_or_what_it_has_keeps_its_tree_alone():
    cls = chain()
    runs = [ended(cls) for _ in range(5)]
    tree = ended(family())
    failed = ended(cls, status="failed")
    for child in members(tree)[-2:]:
        Receipt.objects.create(protects_id=child)
    Receipt.objects.create(protects_failure=failed.failures.get())
    report = prune(failed_older_than=MONTH)
    assert {one.run: (one.why, dict(one.by)) for one in report.remaining} == {
        tree.pk: (REFERRED_TO, {"tests.Receipt": 2}),
        failed.pk: (REFERRED_TO, {"tests.Receipt": 1}),
    }
    assert left() == {*members(tree), failed.pk}
    assert report.trees == len(runs)
    assert orphans() == []


def test_what_restricts_keeps_a_run_unless_it_goes_with_it():
    cls = chain()
    kept, gone = ended(cls), ended(cls)
    Line.objects.create(run=kept)
    Line.objects.create(run=gone, receipt=Receipt.objects.create(goes_with=gone))
    # A cascade from a step counts for a restriction to its run, too.
    also = ended(cls)
    with_step = Receipt.objects.create(goes_with_step=also.steps.get(step="two"))
    Line.objects.create(run=also, receipt=with_step)
    report = prune()
    assert [(one.run, dict(one.by)) for one in report.remaining] == [(kept.pk, {"tests.Line": 1})]
    assert left() == {kept.pk}
    assert Line.objects.count() == 1


def test_objects_of_the_project_cost_queries_for_each_batch_and_not_for_each_run(
    django_assert_max_num_queries,
):
    cls = chain()
    for _ in range(10):
        Receipt.objects.create(goes_with=ended(cls))
    with django_assert_max_num_queries(40):
        assert prune().trees == 10


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql")
def test_a_constraint_that_only_the_database_knows_keeps_its_run():
    cls = chain()
    runs = [ended(cls) for _ in range(3)]
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE keeper (run uuid REFERENCES job_sequences_sequencerun (id) "
            "DEFERRABLE INITIALLY DEFERRED)"
        )
        cursor.execute("INSERT INTO keeper VALUES (%s)", [runs[1].pk])
    try:
        report = prune()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE keeper")
    (kept,) = report.remaining
    assert kept.run == runs[1].pk
    assert kept.why.startswith(REFUSED)
    assert "keeper" in kept.why
    assert left() == {runs[1].pk}
    assert StepRun.objects.count() == 2


# --- others at the same time


def test_a_run_that_was_begun_again_since_it_was_found_stays(monkeypatch):
    cls = chain()
    run, other = ended(cls, status="failed"), ended(cls, status="failed")
    remove = pruning.pruning.remove

    def after_a_retry(roots, *arguments, **options):
        run.retry()
        return remove(roots, *arguments, **options)

    monkeypatch.setattr(pruning.pruning, "remove", after_a_retry)
    report = prune(failed_older_than=MONTH)
    assert [(one.run, one.why) for one in report.remaining] == [(run.pk, TAKEN)]
    assert left() == {run.pk}
    assert (fresh(run).status, other.pk in left()) == ("running", False)
    assert drain() == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_a_run_that_somebody_has_locked_is_not_waited_for(together):
    cls = chain()
    held, free = ended(family()), ended(cls)

    def hold(pk):
        with transaction.atomic():
            lock_run(pk, "default")
            return together(prune)[0]

    report = hold(members(held)[-1])
    assert [(one.run, one.why) for one in report.remaining] == [(held.pk, TAKEN)]
    assert free.pk not in left()
    assert len(left()) == 5


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_of_a_retry_and_a_prune_one_gets_the_run(together):
    cls = chain()
    for _ in range(20):
        run = ended(cls, status="failed")
        retried, report = together(run.retry, lambda: prune(failed_older_than=MONTH))
        if isinstance(retried, InvalidTransition):
            assert report.trees == 1
            assert not SequenceRun.objects.filter(pk=run.pk).exists()
        else:
            assert (retried, report.trees) == (None, 0)
            assert fresh(run).status == "running"
            assert StepRun.objects.filter(run=run.pk).count() == 1
            run.cancel()
    assert orphans() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.only_on("postgresql", "mysql")
def test_two_at_once_remove_every_tree_once(together):
    cls, parent = chain(), family()
    for _ in range(6):
        ended(parent)
        ended(cls)
    reports = together(lambda: prune(batch=2), lambda: prune(batch=3))
    assert sum(report.trees for report in reports) == 12
    assert (left(), orphans()) == (set(), [])
