"""The saga of most tests: it charges, cannot ship, and so refunds."""

from sequences import Sequence, on_failure, step


def nothing(sequence):
    """What a step does of which the test asks nothing."""


def cannot(sequence):
    raise ValueError("out of stock")


def saga(*, charge=nothing, refund=nothing, ship=cannot, tell=None, undo=(), **meta):
    """Each step does what the test says. `undo`: the options of the refund; `meta`: of Meta."""
    charged = step(charge)
    steps = {"charge": charged, "refund": charged.undo(**dict(undo))(refund), "ship": step(ship)}
    if tell is not None:
        steps["tell"] = on_failure(tell)
    options = type("Meta", (), {"app_label": "shop", "max_retries": 0, **meta})
    return type("Saga", (Sequence,), {"__module__": __name__, "Meta": options, **steps})
