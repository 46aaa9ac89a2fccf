"""A child that was fixed does not fix its parent: both say so, and one retry mends the tree."""

import html
import json
import re

import pytest
from django.urls import reverse

from sequences import Abort, Sequence, step, subsequence
from sequences.inspection import family, snapshot
from sequences.inspection.diagnosis import summary
from sequences.models import SequenceRun
from sequences.testing import drain
from tests.console import command, log_in
from tests.engine import fresh

pytestmark = pytest.mark.django_db

DEPTH = 5


def nested(depth):
    """A sequence that starts another one, and so on; the last one fails until it is told."""

    class Meta:
        app_label = "shop"
        max_retries = 0

    class Leaf(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def charge(self):
            if not self.data.get("paid"):
                raise Abort("card expired")

    below = Leaf
    for level in range(1, depth + 1):
        below = type(f"Level{level}", (Sequence,), {"Meta": Meta, "child": subsequence(below)})
    return below


def chain(root):
    """The runs from the root down."""
    runs = [fresh(root)]
    while child := SequenceRun.objects.filter(parent__run=runs[-1]).first():
        runs.append(child)
    return runs


@pytest.fixture
def runs():
    """The runs of an order that has failed five levels down; the root first."""
    order = nested(DEPTH).start({}, key="order-1").run
    drain()
    runs = chain(order)
    assert [run.status for run in runs] == ["failed"] * (DEPTH + 1)
    return runs


def tree(run):
    return family.tree_of(snapshot.of(fresh(run)), SequenceRun.objects.all())


def said_above(run):
    run = fresh(run)
    return family.explain_held_up(run, family.held_up(run, SequenceRun.objects.all()))


def test_the_tree_leads_from_the_root_to_the_deepest_cause(runs):
    found = tree(runs[0])
    assert [node.run.pk for node in found.walk()] == [run.pk for run in runs]
    assert found.cause.run.pk == runs[-1].pk
    assert found.cause.snapshot.current_failure.message == "card expired"
    assert family.explain_fixed(found) == ""


def test_a_run_names_those_that_have_failed_waiting_for_it(runs):
    above = family.held_up(runs[-1], SequenceRun.objects.all())
    assert [run.pk for run in above] == [run.pk for run in runs[-2::-1]]
    assert said_above(runs[1]) == "Its parent order-1 failed while waiting for this run."
    assert said_above(runs[-1]) == (
        "5 runs above this one failed while waiting for it, up to order-1."
    )
    assert said_above(runs[0]) == ""


def test_a_child_that_was_fixed_says_that_its_parent_does_not_go_on_by_itself(runs):
    leaf, parent = runs[-1], runs[-2]
    leaf.edit({"paid": True})
    fresh(leaf).retry()
    drain()
    assert (fresh(leaf).status, fresh(parent).status) == ("succeeded", "failed")
    assert "retry this run to continue" in family.explain_fixed(tree(parent))
    assert family.explain_fixed(tree(runs[0])) == (
        f"The child runs of “child” in {family.name_of(parent)} have succeeded since: "
        "retry this run."
    )
    family.held_up(fresh(leaf), SequenceRun.objects.all())[-1].retry()
    drain()
    assert [fresh(run).status for run in runs] == ["succeeded"] * (DEPTH + 1)
    assert said_above(leaf) == ""
    assert family.explain_fixed(tree(runs[0])) == ""


def test_an_only_child_that_was_fixed_is_named_with_its_parent():
    order = nested(1).start({}, key="order-1").run
    drain()
    child = chain(order)[1]
    child.edit({"paid": True})
    fresh(child).retry()
    assert "is running again" in family.explain_fixed(tree(order))
    drain()
    assert said_above(child) == (
        "Its parent order-1 failed while waiting for this run and does not continue on its own: "
        "retry the parent."
    )
    assert family.explain_fixed(tree(order)) == (
        "The child run of “child” has succeeded since: retry this run to continue."
    )
    sentence = summary(snapshot.of(fresh(order)))
    assert sentence.startswith("“child” failed ")
    assert sentence.endswith(": a child run had failed."), "neither its id, nor that it has failed"


def test_the_list_does_not_quote_what_is_past_of_a_child_that_was_fixed(admin_client):
    order = nested(1).start({}, key="order-1").run
    drain()
    chain(order)[1].skip("charge", reason="paid in cash")
    drain()
    listed = admin_client.get(reverse(f"{RUN}_changelist")).content.decode()
    assert "<b>ChildrenFailed</b> a child run had failed" in listed
    assert "did not succeed" not in listed


def test_the_command_line_says_both_too(runs):
    def shown(run):
        return " ".join(command("show", run.pk).split())

    leaf, parent = runs[-1], runs[-2]
    assert "5 runs above this one failed while waiting for it, up to order-1." in shown(leaf)
    leaf.skip("charge", reason="paid in cash")
    drain()
    assert "The child run of “child” has succeeded since: retry this run" in shown(parent)
    above, below = json.loads(command("show", parent.pk, "--json"))["family"]
    assert above.startswith("4 runs above")
    assert below.startswith("The child run of “child” has succeeded since")


def test_a_tree_is_read_in_a_constant_number_of_queries_for_each_level(
    django_assert_max_num_queries,
):
    class Parcel(Sequence):
        class Meta:
            app_label = "shop"

        @step
        def send(self): ...

    class Order(Sequence):
        class Meta:
            app_label = "shop"

        parcels = subsequence(Parcel, each="items", data=lambda self, item: {"item": item})

    order = Order.start({"items": list(range(70))}).run
    drain()
    root = snapshot.of(fresh(order))
    with django_assert_max_num_queries(10):
        found = family.tree_of(root, SequenceRun.objects.all())
    assert len(found.children) == family.MAX_CHILDREN
    assert found.is_cut


RUN = "admin:job_sequences_sequencerun"


def page(client, run):
    content = client.get(reverse(f"{RUN}_change", args=[run.pk])).content.decode()
    return html.unescape(re.sub(r"<[^>]+>", "", content)), content


def test_the_page_of_a_parent_has_its_children_with_their_own_pictures(admin_client, runs):
    words, content = page(admin_client, runs[0])
    for run in runs[1:]:
        assert f'<li id="child-{run.pk}">' in content
        assert f'href="{reverse(f"{RUN}_change", args=[run.pk])}#step-' in content, "its picture"
    assert "Abort: card expired" in words
    assert content.count('<details id="tree-') == DEPTH
    # The way to the cause is open; the leaf has nothing below it.
    assert len(re.findall(r'<details id="tree-[^"]*" open>', content)) == DEPTH - 1


def test_one_click_on_the_childs_page_retries_all_that_wait_for_it(admin_client, runs):
    leaf = runs[-1]
    leaf.edit({"paid": True})
    words, content = page(admin_client, leaf)
    assert "5 runs above this one failed while waiting for it, up to order-1." in words
    url = reverse(f"{RUN}_action", args=[runs[0].pk, "retry"])
    assert f'<form method="post" action="{url}">' in content
    admin_client.post(url, {"confirm": "yes"})
    drain()
    assert [fresh(run).status for run in runs] == ["succeeded"] * (DEPTH + 1)


@pytest.mark.parametrize("page_name", ["change", "action"])
def test_the_parents_are_not_retried_from_a_page_that_is_out_of_date(admin_client, runs, page_name):
    leaf, top = runs[-1], runs[0]
    top.edit({"checked": True})
    top_url = reverse(f"{RUN}_action", args=[top.pk, "retry"])
    leaf_url = reverse(f"{RUN}_action", args=[leaf.pk, "retry"])
    if page_name == "action":
        url, answer = leaf_url, {"parents": "on"}
        answer["basis"] = admin_client.get(url).context["form"].initial["basis"]
    else:
        url, answer = top_url, {"basis": page(admin_client, leaf)[1].partition(top_url)[2]}
        answer["basis"] = re.search(r'name="basis" value="(\d+)"', answer["basis"])[1]
    assert answer["basis"] in (top.operations.get().pk, str(top.operations.get().pk))
    admin_client.post(url, answer | {"confirm": "yes"})
    drain()  # it fails again
    count = top.operations.count()
    assert count == 2
    admin_client.post(url, answer | {"confirm": "yes"})
    assert (fresh(top).status, top.operations.count()) == ("failed", count)


@pytest.mark.parametrize("parents", [True, False])
def test_the_retry_of_a_child_takes_its_parents_along_if_people_want(admin_client, runs, parents):
    leaf = runs[-1]
    leaf.edit({"paid": True})
    url = reverse(f"{RUN}_action", args=[leaf.pk, "retry"])
    assert 'name="parents"' in (asked := admin_client.get(url).content.decode())
    assert "order-1" in asked
    admin_client.post(url, {"confirm": "yes", **({"parents": "on"} if parents else {})})
    drain()
    assert fresh(leaf).status == "succeeded"
    assert fresh(runs[0]).status == ("succeeded" if parents else "failed")


def test_a_run_that_nobody_waits_for_has_no_such_box(admin_client, runs):
    url = reverse(f"{RUN}_action", args=[runs[0].pk, "retry"])
    assert 'name="parents"' not in admin_client.get(url).content.decode()
    assert family.held_up(runs[0], SequenceRun.objects.none()) == []


def test_who_may_not_retry_the_parents_has_no_button_for_them(client, runs):
    words, content = page(log_in(client, "view_sequencerun"), runs[-1])
    assert "5 runs above this one failed" in words
    assert "Retry the parents" not in content


def test_a_parent_that_was_rolled_back_is_not_retried_from_its_child():
    class Leaf(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def charge(self):
            raise Abort("card expired")

    class Order(Sequence):
        class Meta:
            app_label = "shop"
            max_retries = 0

        @step
        def reserve(self): ...

        @reserve.undo
        def release(self): ...

        child = subsequence(Leaf)

    order = Order.start({}, key="order-1").run
    drain()
    assert fresh(order).status == "failed"
    assert said_above(chain(order)[1]) == ""
