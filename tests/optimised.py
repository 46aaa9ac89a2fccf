"""What `test_optimised.py` runs under ``python -OO``: no docstring is there, and no assert."""

import django
from django.core.management import call_command

django.setup()

from sequences import Abort, Sequence, step, subsequence  # noqa: E402
from sequences.exceptions import InvalidData, InvalidDefinition, InvalidTransition  # noqa: E402
from sequences.testing import assert_steps, run_sequence  # noqa: E402


class Options:
    app_label = "shop"
    max_retries = 0


class Parcel(Sequence):
    Meta = Options

    @step
    def pack(self):
        raise Abort("out of boxes")


class Order(Sequence):
    """Fails in more than one way."""

    Meta = Options

    @step
    def charge(self):
        return 5

    @charge.undo
    def refund(self):
        self.data["refunded"] = self.result("charge")

    @step(each="items", allow_failed=True)
    def reserve(self, item):
        self.data["item"] = item

    parcels = subsequence(Parcel)


def refused(act, expected):
    try:
        act()
    except expected as error:
        print(error)
    else:
        raise SystemExit(f"{act} was taken")


def declare_wrongly():
    class Wrong(Sequence):
        Meta = Options
        one = step("nothing")


def main():
    call_command("migrate", verbosity=0)
    print(__debug__, Order.__doc__)
    order = run_sequence(Order, items=[1])
    for failure in order.run.failures.all():
        print(failure.step, failure.message)
    print(order.run.status, order.data)
    refused(order.run.pause, InvalidTransition)
    refused(declare_wrongly, InvalidDefinition)
    refused(lambda: Order(items={1}), InvalidData)
    refused(lambda: assert_steps(order, []), AssertionError)


main()
