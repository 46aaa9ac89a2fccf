"""What tests of steps share."""

import dramatiq

from sequences import Sequence, step
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


def chain(handoff="broker"):
    """Two steps, each of which writes its name into `data`."""
    options = {"app_label": "shop", "handoff": handoff}

    class Chain(Sequence):
        Meta = type("Meta", (), options)

        @step
        def one(self):
            self.data["one"] = 1

        @step
        def two(self):
            self.data["two"] = 2

    return Chain
