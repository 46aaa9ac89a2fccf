"""What tests of steps share."""

import dramatiq

from sequences.definitions import registry


def failures(sequence):
    """Every failed attempt: its step, its number, its error and what it says."""
    rows = sequence.run.failures.all()
    return [(row.step, row.attempt, row.error, row.message) for row in rows]


def only_failure(sequence):
    (row,) = sequence.run.failures.all()
    return row


def options_of(name):
    actor = dramatiq.get_broker().actors[name]
    return {"queue_name": actor.queue_name, "priority": actor.priority, **actor.options}


def forget(cls):
    """As if the code had it no more."""

    registry._by_label.pop(cls._definition.label)
