"""The object that a run is about: of any model, with any key, found from both sides."""

import json
from datetime import timedelta
from unittest.mock import patch
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils.functional import SimpleLazyObject

from sequences import Sequence, every, start_definition, step, subsequence
from sequences.definitions.subjects import SubjectKey
from sequences.exceptions import InvalidData, SequenceError
from sequences.flows.jobs import job
from sequences.models import RunSubject, Schedule, SequenceRun
from sequences.testing import build, clock, drain
from testproject.orders.models import Order
from tests.engine import fresh
from tests.models import Country, Customer, Express, Insured, Parcel, Shelf

pytestmark = pytest.mark.django_db(transaction=True)


def delivery():
    class Delivery(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def carry(self):
            self.data["carried"] = str(self.subject)

    return Delivery


@pytest.fixture
def parcel():
    return Parcel.objects.create(name="book")


KEYS = {
    "a number": (lambda: Parcel.objects.create(name="a"), lambda row: str(row.pk)),
    "a UUID": (lambda: Customer.objects.create(name="a"), lambda row: str(row.pk)),
    "a text": (lambda: Country.objects.create(code="ü:é %"), lambda row: "ü:é %"),
    "composite": (lambda: Shelf.objects.create(row="A", place=3), lambda row: '["A", "3"]'),
    "its parent's": (lambda: Insured.objects.create(name="a"), lambda row: str(row.pk)),
}


@pytest.mark.parametrize(("create", "text"), KEYS.values(), ids=KEYS)
def test_an_object_with_any_key_and_its_runs_find_each_other(create, text):
    subject = create()
    run = delivery().start(subject=subject).run
    delivery_of_nothing = SequenceRun.objects.exclude(pk=run.pk)
    assert not delivery_of_nothing.exists()
    assert run.subject is subject, "without a query"
    assert fresh(run).subject == subject
    assert type(fresh(run).subject) is type(subject)
    assert list(SequenceRun.objects.about(subject)) == [run]
    row = RunSubject.objects.get()
    assert (row.model, row.object_id) == (subject._meta.label_lower, text(subject))
    assert str(run.subject_key) == f"{row.model}:{row.object_id}"
    assert SubjectKey.parse(str(run.subject_key)).load() == subject


def test_a_step_has_the_object_as_it_is_now(parcel):
    run = delivery().start(subject=parcel).run
    Parcel.objects.update(name="lamp")
    drain()
    assert fresh(run).data == {"carried": "parcel lamp"}


def test_a_step_reads_it_once_and_one_without_a_subject_has_none(parcel):
    class Twice(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def look(self):
            self.data["same"] = self.subject is self.subject
            self.data["run"] = self.run.subject is self.subject

    about, without = Twice.start(subject=parcel).run, Twice.start().run
    drain()
    assert fresh(about).data == {"same": True, "run": True}
    assert (fresh(without).subject, fresh(without).subject_key) == (None, None)
    assert fresh(without).data == {"same": True, "run": True}


def test_an_async_step_asks_for_it():
    country = Country.objects.create(code="NO")

    class Visit(Sequence):
        class Meta:
            app_label = "shop"

        @step
        async def land(self):
            self.data["of"] = [(await self.asubject()).code, (await self.run.asubject()).code]

    run = Visit.start(subject=country).run
    drain()
    assert fresh(run).data == {"of": ["NO", "NO"]}
    assert async_to_sync(fresh(run).asubject)() == country


def test_a_proxy_is_the_same_object(parcel):
    run = delivery().start(subject=Express.objects.get()).run
    assert run.subject_key == SubjectKey("tests.parcel", str(parcel.pk))
    assert list(SequenceRun.objects.about(parcel)) == [run]
    assert list(SequenceRun.objects.about(Express.objects.get())) == [run]
    assert type(fresh(run).subject) is Parcel


def test_the_user_of_a_request_can_be_one():
    user = User.objects.create_user("mia")
    run = delivery().start(subject=SimpleLazyObject(lambda: user)).run
    assert fresh(run).subject == user
    assert list(SequenceRun.objects.about(SimpleLazyObject(lambda: user))) == [run]


def test_runs_about_one_or_several_objects_and_of_one_sequence(parcel):
    class Other(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def go(self): ...

    twin = Parcel.objects.create(pk=parcel.pk + 1)
    namesake = Customer.objects.create()
    cls = delivery()
    first, second = cls.start(subject=parcel).run, Other.start(subject=parcel).run
    third, fourth = cls.start(subject=twin).run, cls.start(subject=namesake).run
    cls.start()
    about = SequenceRun.objects.about
    assert {*about(parcel)} == {first, second}
    assert {*about(parcel, twin)} == {first, second, third}
    assert {*about(parcel, namesake)} == {first, second, fourth}
    assert list(cls.runs.about(parcel)) == [first]
    assert list(cls.runs.about(parcel).unfinished()) == [first]
    assert list(about()) == []
    assert about(parcel).count() == 2


def test_the_subjects_of_a_list_are_read_by_one_query_for_each_model():
    parcels = [Parcel.objects.create(name=str(number)) for number in range(5)]
    customers = [Customer.objects.create(name=str(number)) for number in range(5)]
    cls = delivery()
    cls.start_many([({}, {"subject": subject}) for subject in [*parcels, *customers]])
    cls.start()
    runs = SequenceRun.objects.order_by("pk").prefetch_related("subject")
    with CaptureQueriesContext(connection) as caught:
        subjects = [run.subject for run in runs]
    assert len(caught) == 4, "the runs, the names of their subjects, parcels, customers"
    assert sorted(map(str, subjects)) == sorted(map(str, [*parcels, *customers, None]))
    with CaptureQueriesContext(connection) as caught:
        rows = SequenceRun.objects.select_related("subject_row").prefetch_related("subject")
        assert len([run.subject for run in rows]) == 11
    assert len(caught) == 3


def test_one_that_is_gone_is_none_and_its_name_is_left(parcel):
    run, pk = delivery().start(subject=parcel).run, parcel.pk
    parcel.delete()
    assert fresh(run).subject is None
    assert fresh(run).subject_key == ("tests.parcel", str(pk))
    assert [each.subject for each in SequenceRun.objects.prefetch_related("subject")] == [None]
    drain()
    assert fresh(run).data == {"carried": "None"}


def test_one_whose_model_is_gone_is_none(parcel):
    run = delivery().start(subject=parcel).run
    RunSubject.objects.update(model="attic.parcel")
    assert fresh(run).subject is None
    assert [each.subject for each in SequenceRun.objects.prefetch_related("subject")] == [None]
    RunSubject.objects.update(model="tests.customer")  # whose keys are no numbers
    assert fresh(run).subject is None
    assert [each.subject for each in SequenceRun.objects.prefetch_related("subject")] == [None]


def test_it_is_read_anew_with_the_row(parcel):
    run = delivery().start(subject=parcel).run
    Parcel.objects.update(name="lamp")
    assert run.subject.name == "book"
    run.refresh_from_db()
    assert run.subject.name == "lamp"


def test_it_cannot_be_exchanged(parcel):
    run = delivery().start(subject=parcel).run
    with pytest.raises(AttributeError, match="never changes"):
        run.subject = None
    with pytest.raises(TypeError):
        SequenceRun(subject=parcel)


def test_a_run_by_a_key_that_exists_keeps_its_own(parcel):
    other = Parcel.objects.create()
    cls = delivery()
    cls.start(key="a", subject=parcel)
    again = cls.start(key="a", subject=other)
    assert not again.created
    assert again.run.subject == parcel
    assert again.subject == parcel
    assert RunSubject.objects.count() == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key": "a"},
        {"key": "a", "unique": "unfinished"},
        {"delay": timedelta(hours=1)},
        {"deadline": timedelta(hours=1)},
        {"priority": 3},
    ],
    ids=str,
)
def test_it_goes_with_every_other_option(parcel, options):
    run = delivery().start(subject=parcel, **options).run
    assert fresh(run).subject == parcel


def test_many_have_one_each_or_none(parcel):
    other = Parcel.objects.create()
    cls = delivery()
    starts = [
        ({"n": 0}, {"subject": parcel}),
        {"n": 1},
        ({"n": 2}, {"subject": other, "key": "a"}),
        ({"n": 3}, {"subject": other, "deadline": timedelta(hours=1)}),
        ({"n": 4}, {"subject": None}),
    ]
    subjects = [sequence.subject for sequence in cls.start_many(starts)]
    assert subjects == [parcel, None, other, other, None]
    stored = [run.subject for run in sorted(SequenceRun.objects.all(), key=lambda r: r.data["n"])]
    assert stored == subjects


def test_a_start_that_is_rolled_back_leaves_nothing(parcel):
    with transaction.atomic():
        delivery().start(subject=parcel)
        transaction.set_rollback(True)
    assert not RunSubject.objects.exists()


@pytest.mark.parametrize("key", [None, "a"])
@pytest.mark.parametrize("many", [False, True])
def test_a_run_is_never_stored_without_its_subject(parcel, key, many):
    """On the portable path, which has a statement for each table."""
    cls = delivery()

    def start():
        options = {"subject": parcel, "key": key}
        return cls.start_many([({}, options)])[0] if many else cls.start(**options)

    with patch("sequences.transitions.starts.start_quickly", return_value=None):
        insert = "sequences.transitions.starts._insert_subjects"
        with patch(insert, side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
            start()
        assert not SequenceRun.objects.exists()
        assert fresh(start().run).subject == parcel


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (
            lambda: "shop.order:17",
            "subject is of type str; it must be a model instance or None",
        ),
        (lambda: Parcel, "subject is of type ModelBase; it must be a model instance"),
        (lambda: Parcel(), "this Parcel cannot be the subject: it has no primary key. Save"),
        (lambda: Shelf(row="A"), "this Shelf cannot be the subject: it has no primary key"),
        (lambda: Country(code="x" * 256), "its primary key has 256 characters; the limit is 255"),
    ],
)
def test_what_cannot_be_a_subject_is_refused_before_anything_is_written(subject, message):
    with pytest.raises(SequenceError, match=message):
        delivery().start(subject=subject())
    assert not SequenceRun.objects.exists()
    with pytest.raises(SequenceError, match=message.replace("shop.Delivery.start: ", "")):
        SequenceRun.objects.about(subject())


def test_a_key_that_no_database_stores_is_refused():
    with pytest.raises(InvalidData, match="subject"):
        delivery().start(subject=Country(code="a\0b"))


def test_one_that_is_only_named_needs_no_query(parcel):
    with CaptureQueriesContext(connection) as caught:
        delivery().start(subject=Parcel(pk=parcel.pk))
    assert not [each for each in caught if "tests_parcel" in each["sql"]]
    assert SequenceRun.objects.get().subject == parcel


def test_a_child_run_has_a_subject_only_if_its_parent_gives_it_one(parcel):
    cls = delivery()
    other = Parcel.objects.create(name="lamp")

    class Order(Sequence):
        class Meta:
            app_label = "shop"

        plain = subsequence(cls, data=lambda self: {"of": "plain"})
        same = subsequence(cls, data=lambda self: {"of": "same"}, subject=lambda self: self.subject)
        each = subsequence(
            cls,
            each="parcels",
            data=lambda self, pk: {"of": pk},
            subject=lambda self, pk: Parcel(pk=pk),
        )
        none = subsequence(cls, data=lambda self: {"of": "none"}, subject=lambda self: None)

    Order.start({"parcels": [parcel.pk, other.pk]}, subject=parcel)
    drain()
    runs = {run.data["of"]: run for run in cls.runs}
    assert runs["plain"].subject is None
    assert runs["none"].subject is None
    assert runs["same"].subject == parcel
    assert (runs[parcel.pk].subject, runs[other.pk].subject) == (parcel, other)
    assert runs[other.pk].data["carried"] == "parcel lamp"


def test_a_definition_that_is_data_is_started_about_an_object(parcel):
    @job("parcels.carry")
    def carry(sequence):
        return sequence.subject.name

    run = start_definition(
        {"steps": [{"name": "carry", "job": "parcels.carry"}]}, {}, subject=parcel
    ).run
    assert fresh(run).subject == parcel
    assert list(SequenceRun.objects.about(parcel)) == [run]


def test_a_unit_test_of_a_step_may_set_it(parcel):
    sequence = build(delivery())
    assert sequence.subject is None
    sequence.subject = parcel
    sequence.carry()
    assert sequence.data == {"carried": "parcel book"}


def test_its_name_is_text_that_json_takes():
    key = SubjectKey("shop.order", str(UUID(int=7)))
    assert str(key) == "shop.order:00000000-0000-0000-0000-000000000007"
    assert json.dumps(str(key))
    assert SubjectKey.parse("Shop.Order:a:b") == ("shop.order", "a:b")
    for text in ("shop.order", "shop:17", "a.b.c:17", "shop.order:", f"shop.order:{'9' * 300}"):
        with pytest.raises(ValueError, match=r"form app\.model:pk"):
            SubjectKey.parse(text)


def test_what_type_checkers_see_runs():
    from tests.typing import subjects as typed

    order = Order.objects.create(name="Joan", email="joan@example.com")
    fulfil = typed.place(order)
    drain()
    assert fresh(fulfil.run).data["thanked"] == "Joan"
    assert SequenceRun.objects.about(order).count() == 4, "two, and their children"


def test_the_status_for_visitors_does_not_name_it(client, parcel):
    run = delivery().start(subject=Customer.objects.create(name="Ada")).run
    text = client.get(run.status_url()).content.decode()
    assert str(run.subject.pk) not in text
    assert "Ada" not in text


def test_a_schedule_that_was_made_for_an_object_starts_runs_about_it(parcel):
    cls = delivery()
    schedule = cls.schedules.create("hourly", every(timedelta(hours=1)), subject=parcel)
    cls.schedules.create("other", every(timedelta(hours=1)))
    assert list(Schedule.objects.about(parcel)) == [schedule]
    assert schedule.subject_key == ("tests.parcel", str(parcel.pk))
    by_hand = schedule.run_now()
    by_hand.finish()
    with clock() as moving:
        moving.move_to_next(schedule)
        drain()
    runs = list(SequenceRun.objects.about(parcel).order_by("created_at"))
    assert len(runs) == 2
    assert runs[0] == by_hand
    assert runs[1].data == {"carried": "parcel book"}
    with pytest.raises(SequenceError, match="subject is of type str"):
        cls.schedules.create("wrong", every(timedelta(hours=1)), subject="x")
