"""Timetables: which slots they have, and what is done about a slot that is due."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequences import Sequence, cron, every, step
from sequences.definitions.schedules import ON_TIME, Turn, in_zone, key_of, timetable_of, turn_of
from sequences.exceptions import InvalidDefinition, SequenceError

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BERLIN = ZoneInfo("Europe/Berlin")


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def slots(timetable, since, until):
    return list(timetable.between(at(since), at(until)))


def turn(timetable, slot, now, **options):
    return turn_of(timetable, at(slot), at(now), "shop.Report default", **options)


def test_the_slots_of_a_cron_expression_are_in_its_time_zone():
    berlin = cron("0 3 * * *", timezone="Europe/Berlin")
    found = slots(berlin, "2026-07-01", "2026-07-02T12:00")
    assert found == [at("2026-07-01T01:00"), at("2026-07-02T01:00")]
    assert berlin.after(at("2026-12-01")) == at("2026-12-01T02:00")
    assert in_zone(berlin, found[0]).isoformat() == "2026-07-01T03:00:00+02:00"


def test_the_project_s_time_zone_is_the_default(settings):
    settings.TIME_ZONE = "America/New_York"
    assert cron("0 12 * * *").after(at("2026-01-01")) == at("2026-01-01T17:00")


def test_seconds_may_stand_first():
    assert cron("*/20 * * * * *").after(at("2026-01-01T00:00:01")) == at("2026-01-01T00:00:20")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # 02:30 does not exist on 29 March: it comes when the clocks have moved.
        ("30 2 * * *", ["2026-03-28T01:30", "2026-03-29T01:00", "2026-03-30T00:30"]),
        # Two slots that do not exist, and one that does, are the same moment then.
        ("15,45 2 * * *", ["2026-03-28T01:15", "2026-03-28T01:45", "2026-03-29T01:00"]),
        ("0 2,3 * * *", ["2026-03-28T01:00", "2026-03-28T02:00", "2026-03-29T01:00"]),
    ],
)
def test_a_slot_that_clocks_leave_out_comes_at_the_end_of_the_gap(expression, expected):
    timetable = cron(expression, timezone="Europe/Berlin")
    found = slots(timetable, "2026-03-28", "2026-03-31")
    assert found[:3] == [at(text) for text in expected]


def test_a_slot_that_clocks_show_twice_comes_once():
    timetable = cron("30 2 * * *", timezone="Europe/Berlin")
    found = slots(timetable, "2026-10-24", "2026-10-27")
    assert found == [at("2026-10-24T00:30"), at("2026-10-25T00:30"), at("2026-10-26T01:30")]
    # Also for who asks in the second of the two hours.
    assert timetable.after(at("2026-10-25T01:10")) == at("2026-10-26T01:30")


def test_what_repeats_within_the_hour_goes_on_through_both_changes():
    timetable = cron("*/30 * * * *", timezone="Europe/Berlin")
    for day in ("2026-03-29", "2026-10-25"):
        found = slots(timetable, day, f"{day}T04:00")
        assert {later - earlier for earlier, later in itertools.pairwise(found)} == {
            timedelta(minutes=30)
        }


@given(
    st.integers(0, 95_000_000).map(lambda seconds: at("2025-01-01") + seconds * SECOND),
    st.sampled_from(["30 2 * * *", "*/7 * * * *", "0 0 1 * *", "5 1-3 * * SUN", "* 2 * * *"]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
)
def test_slots_only_go_forward(moment, expression, zone):
    timetable = cron(expression, timezone=zone)
    first = timetable.after(moment)
    second = timetable.after(first)
    assert moment < first < second
    assert list(timetable.between(moment, second)) == [first, second]
    assert timetable.latest(first, second) == second
    assert timetable.latest(first, second - timedelta(seconds=1)) == first


def test_an_interval_counts_from_its_slots():
    timetable = every(5 * MINUTE)
    assert timetable.after(at("2026-01-01T00:03:07")) == at("2026-01-01T00:05")
    assert timetable.after(at("2026-01-01T00:05")) == at("2026-01-01T00:10")
    assert every(7 * DAY).after(at("2026-11-29T10:00")) == at("2026-11-30")  # a Monday


def test_an_interval_may_have_a_start():
    timetable = every(2 * DAY, start=datetime(2026, 1, 1, 9, tzinfo=BERLIN))
    assert timetable.after(at("2020-01-01")) == at("2026-01-01T08:00")
    assert timetable.after(at("2026-01-01T08:00")) == at("2026-01-03T08:00")
    assert timetable.latest(at("2020-01-01"), at("2021-01-01")) is None


# What is done about a slot that is due


def test_a_slot_in_time_starts_and_the_next_follows():
    found = turn(every(MINUTE), "2026-01-01T00:01", "2026-01-01T00:01:00.3")
    assert found == Turn(at("2026-01-01T00:01"), at("2026-01-01T00:02"))


def test_slots_of_one_second_start_each_while_the_sweep_is_a_little_late():
    now = at("2026-01-01T00:00:10")
    found = turn(every(timedelta(seconds=1)), "2026-01-01T00:00:04", "2026-01-01T00:00:10")
    assert now - found.slot <= ON_TIME
    assert found == Turn(at("2026-01-01T00:00:04"), at("2026-01-01T00:00:05"))


def test_of_missed_slots_the_latest_starts():
    found = turn(every(MINUTE), "2026-01-01T00:01", "2026-01-01T00:30:30")
    assert found == Turn(
        at("2026-01-01T00:30"), at("2026-01-01T00:31"), missed=at("2026-01-01T00:29")
    )


def test_a_slot_that_is_older_than_catch_up_is_left_out():
    timetable = cron("0 3 * * *", timezone="UTC", catch_up=2 * HOUR)
    assert turn(timetable, "2026-01-01T03:00", "2026-01-01T05:00").slot == at("2026-01-01T03:00")
    assert turn(timetable, "2026-01-01T03:00", "2026-01-01T05:01") == Turn(
        None, at("2026-01-02T03:00"), missed=at("2026-01-01T03:00")
    )


def test_all_missed_slots_start_one_by_one_if_that_is_wanted():
    timetable = every(MINUTE, missed="all", catch_up=3 * MINUTE)
    found = turn(timetable, "2026-01-01T00:01", "2026-01-01T00:30:30")
    assert found == Turn(
        at("2026-01-01T00:28"), at("2026-01-01T00:29"), missed=at("2026-01-01T00:27")
    )
    following = turn(timetable, "2026-01-01T00:29", "2026-01-01T00:30:30")
    assert following == Turn(at("2026-01-01T00:29"), at("2026-01-01T00:30"))


def test_a_slot_that_has_waited_is_not_missed():
    timetable = every(MINUTE, overlap="wait", catch_up=timedelta(0))
    found = turn(timetable, "2026-01-01T00:01", "2026-01-01T09:00", has_waited=True)
    assert found == Turn(at("2026-01-01T00:01"), at("2026-01-01T00:02"))


@given(
    st.integers(0, 7200),
    st.sampled_from(["latest", "all"]),
    st.integers(0, 3600),
    st.integers(0, 50),
)
def test_a_turn_leaves_no_slot_out_without_saying_so(late, missed, catch_up, jitter):
    timetable = every(
        MINUTE,
        missed=missed,
        catch_up=timedelta(seconds=catch_up),
        jitter=timedelta(seconds=jitter),
    )
    slot = at("2026-01-01T00:01")
    now = timetable.start_of(slot, "name") + timedelta(seconds=late)
    found = turn_of(timetable, slot, now, "name")
    passed = list(timetable.between(slot - MINUTE, found.following - MINUTE))
    left_out = [each for each in passed if each != found.slot]
    assert found.missed == (left_out[-1] if left_out else None)
    if found.slot is not None:
        assert found.slot == found.following - MINUTE
        assert timetable.start_of(found.slot, "name") <= now


def test_jitter_is_the_same_for_each_who_asks_and_another_for_each_slot():
    timetable = every(HOUR, jitter=10 * MINUTE)
    found = list(timetable.between(at("2026-01-01"), at("2026-01-03")))
    delays = [timetable.start_of(slot, "shop.Report default") - slot for slot in found]
    assert delays == [timetable.start_of(slot, "shop.Report default") - slot for slot in found]
    assert all(timedelta(0) <= delay < 10 * MINUTE for delay in delays)
    assert len(set(delays)) > 40
    assert delays != [timetable.start_of(slot, "shop.Other default") - slot for slot in found]


def test_with_jitter_lateness_counts_from_the_start():
    timetable = every(HOUR, jitter=59 * MINUTE, catch_up=timedelta(0))
    slot = at("2026-01-01T01:00")
    start = timetable.start_of(slot, "name")
    assert turn_of(timetable, slot, start, "name").slot == slot


def test_a_jitter_longer_than_the_gap_never_goes_back_to_an_earlier_slot():
    timetable = cron("*/15 * * * *", timezone="UTC", missed="all", jitter=HOUR)
    for slot in timetable.between(at("2026-01-01"), at("2026-01-02")):
        found = turn_of(timetable, slot, timetable.start_of(slot, "name") + HOUR + MINUTE, "name")
        assert found.following > slot
        assert found.slot is None or found.slot > slot


def test_a_key_is_made_of_schedule_and_slot():
    assert key_of("nightly", at("2026-01-01T03:00")) == "schedule:nightly:2026-01-01T03:00:00Z"


# As values


@pytest.mark.parametrize(
    "timetable",
    [
        cron("0 3 * * MON", timezone="Europe/Berlin", overlap="wait", missed="all"),
        every(timedelta(seconds=90), jitter=timedelta(seconds=3), catch_up=DAY),
        every(DAY, start=at("2026-01-01T08:00")),
    ],
)
def test_a_timetable_is_stored_as_json_and_read_again(timetable):
    assert timetable_of(timetable.to_json()) == timetable
    assert timetable_of(timetable.to_json()).fingerprint() == timetable.fingerprint()


def test_a_later_release_s_timetable_cannot_be_read():
    with pytest.raises(SequenceError, match="cannot read the schedule"):
        timetable_of({"solar": "sunrise", "overlap": "skip"})


def test_the_fingerprint_tells_declarations_apart():
    def rows(slot):
        return {"day": slot.isoformat()}

    different = [
        every(MINUTE),
        every(2 * MINUTE),
        every(MINUTE, overlap="allow"),
        every(MINUTE, data={"a": 1}),
        every(MINUTE, data=rows),
        every(MINUTE, start=at("2026-01-01")),
    ]
    assert len({each.fingerprint() for each in different}) == len(different)
    assert every(MINUTE, data={"a": object()}).fingerprint() == (
        every(MINUTE, data={"a": object()}).fingerprint()
    )


def now():
    """A function that takes no slot."""


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda: cron("0 25 * * *"),
            "'0 25 \\* \\* \\*' is not a valid cron expression: invalid hour",
        ),
        (lambda: cron("@daily"), "is not a valid cron expression: wrong number of fields"),
        (lambda: cron("0 0 30 2 *"), "is not a valid cron expression: invalid day of the month"),
        (lambda: cron(5), "the expression is 5"),
        (lambda: cron("0 3 * * *", timezone="Mars/Olympus"), "is not a known time zone"),
        (lambda: cron("0 3 * * *", timezone="../etc/passwd"), "is not a known time zone"),
        (lambda: every(5), "the interval is 5"),
        (lambda: every(timedelta(milliseconds=500)), "It must be at least one second"),
        (lambda: every(MINUTE, jitter=MINUTE), "the jitter is not shorter than the interval"),
        (
            lambda: every(MINUTE, start=at("2026-01-01").replace(tzinfo=None)),
            "It must be a datetime with a time zone",
        ),
        (lambda: every(MINUTE, overlap="queue"), "overlap is 'queue'"),
        (lambda: every(MINUTE, missed="none"), "missed is 'none'"),
        (lambda: every(MINUTE, catch_up=60), "catch_up is 60"),
        (lambda: every(MINUTE, catch_up=timedelta(-1)), "It must be a timedelta"),
        (lambda: every(MINUTE, data=5), "data is 5"),
        (lambda: every(MINUTE, data=now), "cannot be called with the slot alone"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_declared(make, problem):
    with pytest.raises(InvalidDefinition, match=problem):
        make()


def test_a_coroutine_function_makes_no_data():
    async def rows(slot):
        return {}

    with pytest.raises(InvalidDefinition, match="Define it without async"):
        every(MINUTE, data=rows)


# In a Meta


def declared(**options):
    class Report(Sequence):
        Meta = type("Meta", (), {"app_label": "shop", **options})

        @step
        def write(self):
            pass

    return Report._definition.schedules


def test_a_meta_has_a_schedule_or_several():
    hourly, nightly = every(HOUR), cron("0 3 * * *")
    assert declared() == {}
    assert declared(schedule=hourly) == {"default": hourly}
    assert declared(schedules={"hourly": hourly, "nightly": nightly}) == {
        "hourly": hourly,
        "nightly": nightly,
    }


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"schedule": "0 3 * * *"}, "schedule is '0 3"),
        ({"schedules": [every(HOUR)]}, "schedules is"),
        ({"schedules": {"hourly": HOUR}}, "schedule 'hourly' is"),
        ({"schedules": {"": every(HOUR)}}, "the name of the schedule is ''"),
        ({"schedules": {"x" * 101: every(HOUR)}}, "is too long"),
        ({"schedule": every(HOUR), "schedules": {"a": every(HOUR)}}, "schedule and schedules"),
        ({"schedule": every(HOUR), "abstract": True}, "it is abstract and has a schedule"),
    ],
)
def test_a_meta_says_what_is_wrong_with_its_schedules(options, problem):
    with pytest.raises(InvalidDefinition, match=problem):
        declared(**options)


def test_a_subclass_does_not_inherit_the_schedule():
    class Report(Sequence):
        class Meta:
            app_label = "shop"
            schedule = every(HOUR)

        @step
        def write(self):
            pass

    class Special(Report):
        class Meta(Report.Meta):
            app_label = "shop"

    assert Report._definition.schedules
    assert not Special._definition.schedules
