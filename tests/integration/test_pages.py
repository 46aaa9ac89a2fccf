"""`{% sequence_progress %}`, and the part of a page that its script asks for again."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.template import Context, Template
from django.test.utils import CaptureQueriesContext, override_settings
from django.utils import translation
from django.utils.functional import SimpleLazyObject, empty
from django.utils.html import escape

from sequences import Abort, Sequence, event, links, step
from sequences.exceptions import SequenceError
from sequences.inspection.snapshot import HEAVY
from sequences.models import SequenceRun
from sequences.testing import drain
from tests.engine import change, claim, fail, fresh

pytestmark = pytest.mark.django_db
SCRIPT = "<script>alert(1)</script>"
BEGIN = "{% load sequences %}"


@pytest.fixture
def order():
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            verbose_name = "your order"

        @step
        def charge_card(self): ...

        approval = event()

        @step
        def ship(self):
            if self.data.get("fails"):
                raise Abort("no parcels")

    return Order


def page_of(run, arguments="", request=None, **context):
    context = Context({"run": run, "request": request, **context})
    return Template(f"{BEGIN}{{% sequence_progress run {arguments} %}}").render(context)


def address_in(page):
    return re.search(r'data-seq-progress="([^"]+)"', page)[1]


def part(page, name):
    """The text of a part, as people read it."""
    [found] = re.findall(rf'data-seq-part="{name}"[^>]*>(.*?)</(?:div|progress)>', page, re.S)
    return re.sub(r"<[^>]+>", "", found).strip()


def in_step(order, **data):
    run = order(**data).run
    claim(run, "charge_card")
    return fresh(run)


def waiting(order, **data):
    run = order(**data).run
    drain()
    return fresh(run)


def ended(order, **data):
    run = waiting(order, **data)
    run.deliver("approval")
    drain()
    return fresh(run)


# What it shows


def test_a_moving_run_is_a_bar_a_text_and_an_address_for_its_script(client, order):
    page = page_of(in_step(order))

    assert 'max="100" value="0" aria-label="Your order"' in page
    assert part(page, "text") == "Charge card"
    assert 'role="status"' in page
    assert '<noscript><p class="seq-progress-reload"><a href="">' in page
    assert "sequences/progress.js" in page
    assert page.index("sequences/states.css") < page.index("sequences/progress.css")
    answer = client.get(address_in(page))
    assert answer.text in page, "the part that the script gets is the one that the page has"


def test_an_event_is_waited_for(order):
    page = page_of(waiting(order))

    assert part(page, "text") == "Waiting for approval"
    assert 'class="seq-progress-now seq-waiting"' in page
    assert 'data-seq-poll="5000"' in page


def test_a_retry_says_so_and_not_why(order):
    run = order().run
    fail(claim(run, "charge_card"), final=False)

    page = page_of(fresh(run))

    assert part(page, "text") == "Charge card (retrying)"
    assert "broken" not in page
    assert "ValueError" not in page


@pytest.mark.parametrize(
    ("done", "total", "text", "percent"),
    [
        (3, 12, "Charge card (3 of 12)", 8),
        (0.5, 1, "Charge card (50%)", 16),
        (2.5, 5, "Charge card (50%)", 16),
        (9, 3, "Charge card (9 of 3)", 33),
    ],
)
def test_how_much_of_a_step_is_done_is_a_part_of_the_whole(order, done, total, text, percent):
    run = in_step(order)
    change(run, "charge_card", progress={"done": done, "total": total, "text": "Asking the bank"})

    page = page_of(run)

    assert part(page, "text") == text
    assert part(page, "notes") == "Asking the bank"
    assert f'value="{percent}"' in page


def test_a_delayed_step_comes_later(order):
    run = order.start({}, delay=timedelta(hours=1)).run

    assert part(page_of(run), "text") == "Charge card (scheduled)"


def test_steps_side_by_side_are_all_told():
    class Both(Sequence):
        class Meta:
            app_label = "shop"

        @step(after=[])
        def pack(self): ...

        @step(after=[])
        def invoice(self): ...

    page = page_of(Both().run)

    assert re.findall(r"<p>(\w+)</p>", page) == ["Pack", "Invoice"]


@pytest.mark.parametrize(
    ("act", "text", "polls"),
    [
        ("pause", "Paused.", True),
        ("cancel", "This was cancelled.", False),
        ("finish", "Done.", False),
    ],
)
def test_what_people_did_to_it_is_told(order, act, text, polls):
    run = waiting(order)
    getattr(run, act)()

    page = page_of(run)

    assert part(page, "text") == text
    assert ("data-seq-progress" in page) is polls


def test_what_is_being_undone_is_told(order):
    run = waiting(order)
    SequenceRun.objects.filter(pk=run.pk).update(status="undoing")

    assert part(page_of(fresh(run)), "text") == "Rolling back…"


def test_a_failed_run_tells_nothing_but_that(order):
    page = page_of(ended(order, fails=True))

    assert part(page, "text") == "Something went wrong; we have been notified."
    assert "no parcels" not in page
    assert 'value="66"' in page


def test_a_failure_that_siblings_outlast_is_told_at_once(client, order):
    run = order().run
    fail(claim(run, "charge_card"), final=True)
    SequenceRun.objects.filter(pk=run.pk).update(status="running")

    page = page_of(fresh(run))

    assert part(page, "text").startswith("Something went wrong")
    assert "data-seq-poll" in page


# The end


def test_at_the_end_there_is_nothing_left_to_ask_for(order):
    page = page_of(ended(order))

    assert part(page, "text") == "Done."
    assert 'value="100"' in page
    for what in ("<noscript", "<script", "data-seq-progress", "data-seq-poll"):
        assert what not in page, "a page that is reloaded at its end never stops"


def test_the_end_is_in_the_words_of_the_page_and_leads_where_it_says(client, order):
    arguments = "labels=labels done_url='/orders/?a=1&b=2' done_text=thanks"
    context = {"labels": {"charge_card": "Taking the money"}, "thanks": "See your order"}
    run = in_step(order)
    before = page_of(run, arguments, **context)
    assert part(before, "text") == "Taking the money"
    assert "See your order" not in before
    change(run, "charge_card", status="succeeded", wake_at=None)
    fresh(run).finish()

    after = client.get(address_in(before)).text

    assert '<a href="/orders/?a=1&amp;b=2">See your order</a>' in after
    assert part(after, "text") == "Done."
    assert "data-seq-redirect" not in after
    assert after in page_of(fresh(run), arguments, **context)


def test_what_a_template_has_escaped_is_not_escaped_twice(client, order):
    source = (
        "{% load i18n %}{% blocktranslate asvar thanks %}Thanks, {{ name }}{% endblocktranslate %}"
        f"{BEGIN}{{% sequence_progress run done_text=thanks failed_text='<i>' %}}"
    )
    run = waiting(order)
    page = Template(source).render(Context({"run": run, "name": SCRIPT}))
    run.finish()

    for after in (
        Template(source).render(Context({"run": run, "name": SCRIPT})),
        client.get(address_in(page)).text,
    ):
        assert f">Thanks, {escape(SCRIPT)}</p>" in after


def test_a_text_alone_is_the_end(order):
    page = page_of(ended(order), "done_text='Thank you!'")

    assert part(page, "text") == "Thank you!"
    assert part(page, "end") == ""


def test_a_link_without_a_text_has_one(order):
    assert part(page_of(ended(order), "done_url='/'"), "end") == "Continue"


@pytest.mark.parametrize(("act", "argument"), [("cancel", "cancelled_text"), ("", "failed_text")])
def test_a_bad_end_is_in_the_words_of_the_page_too(order, act, argument):
    run = ended(order, fails=True) if not act else waiting(order)
    if act:
        run.cancel()

    page = page_of(run, f"{argument}='Call us.' done_url='/'")

    assert part(page, "text") == "Call us."
    assert part(page, "end") == "", "the link is of the good end"


def test_the_browser_is_sent_on_only_at_the_end_that_it_saw_come(client, order):
    run = waiting(order)
    arguments = "done_url='/orders/' redirect=True"
    page = page_of(run, arguments)
    assert "data-seq-redirect" not in page
    run.finish()

    assert 'data-seq-redirect="/orders/"' in client.get(address_in(page)).text
    assert "<script" not in page_of(run, arguments), "who comes back is not sent on again"


def test_an_awaited_event_with_a_text_of_its_own_is_that_text(order):
    page = page_of(waiting(order), "labels=labels", labels={"approval": "We look at it ourselves"})

    assert part(page, "text") == "We look at it ourselves"


# What it is given


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "data:text/html,x",
        "//example.com/",
        "/\\example.com/",
        "https://example.com/",
        "http:///example.com/",
    ],
)
def test_the_end_leads_to_no_other_site(order, rf, url):
    for request in (None, rf.get("/")):
        with pytest.raises(SequenceError, match="only to pages of this site"):
            page_of(order().run, "done_url=url", request, url=url)


def test_the_whole_address_of_a_page_of_this_site_is_one(order, rf):
    page = page_of(ended(order), "done_url='http://testserver/a/'", rf.get("/"))

    assert 'href="http://testserver/a/"' in page
    with pytest.raises(SequenceError):
        page_of(order().run, "done_url='http://testserver/a/'", rf.get("/", secure=True))


def test_a_page_asks_as_long_as_it_says(client, order, monkeypatch):
    url = address_in(page_of(order().run, "expires=hour", hour=timedelta(hours=1)))
    moment = links.timezone.now() + timedelta(minutes=61)
    monkeypatch.setattr(links.timezone, "now", lambda: moment)

    answer = client.get(url)

    assert answer.status_code == 410
    assert part(answer.text, "text").startswith("This link has expired. Reload the page")
    assert "data-seq-poll" not in answer.text


def test_a_sequence_is_as_good_as_its_run(order):
    sequence = order()

    assert part(page_of(sequence), "text") == "Charge card"


@pytest.mark.parametrize("run", ["", None, 17])
def test_what_is_no_run_is_refused(run):
    with pytest.raises(SequenceError, match="shows a run"):
        page_of(run)


def test_texts_that_no_url_could_carry_are_refused(order):
    with pytest.raises(SequenceError, match="characters long"):
        page_of(order().run, "done_text=text", text="".join(map(chr, range(200, 3000))))


@override_settings(ROOT_URLCONF="testproject.contact.urls")
def test_a_project_without_the_urls_is_told_how_to_add_them(order):
    with pytest.raises(SequenceError, match=r"include\('sequences.urls'\)"):
        page_of(order().run)


# How it is built


def test_every_text_is_text_and_nothing_else(client):
    class Order(Sequence):
        class Meta:
            app_label = "shop"
            verbose_name = SCRIPT

        @step(label=SCRIPT)
        def charge(self): ...

        @step
        def ship(self): ...

    run = Order().run
    claim(run, "charge")
    change(run, "charge", progress={"done": 1, "total": 2, "text": SCRIPT})
    for arguments in ("", "labels=labels"):
        page = page_of(run, arguments, labels={"charge": SCRIPT})
        assert page.count(escape(SCRIPT)) == 3, "title, label, note"
        assert SCRIPT not in page
        assert SCRIPT not in client.get(address_in(page)).text
    fresh(run).finish()
    for arguments in ("done_text=s", "done_url='/' done_text=s"):
        page = page_of(fresh(run), arguments, s=SCRIPT)
        assert escape(SCRIPT) in page
        assert SCRIPT not in page


def test_no_script_stands_in_the_page_and_a_nonce_is_kept(order):
    run = in_step(order)
    page = page_of(run)
    [script] = re.findall(r"<script[^>]*>[^<]*</script>", page)
    assert script == '<script src="/static/sequences/progress.js" defer></script>'
    assert not re.search(r"\son\w+=|\sstyle=", page)

    assert 'defer nonce="abc">' in page_of(run, csp_nonce="abc")


def test_a_nonce_that_is_false_until_it_is_used_is_used(order, rf):
    class LazyNonce(SimpleLazyObject):  # as in Django 6.0 and django-csp 4
        def __bool__(self):
            return self._wrapped is not empty

    run = order().run
    request = rf.get("/")
    assert 'defer nonce="a">' in page_of(run, csp_nonce=LazyNonce(lambda: "a"))
    assert "nonce" not in page_of(run, request=request, csp_nonce=None)
    request.csp_nonce = LazyNonce(lambda: "b")
    assert 'defer nonce="b">' in page_of(run, request=request)
    unused = LazyNonce(lambda: "c")
    assert "nonce" not in page_of(ended(order), csp_nonce=unused)
    assert not unused


def test_two_of_them_on_a_page_have_addresses_of_their_own(client, order):
    one, other = in_step(order), waiting(order)
    template = Template(f"{BEGIN}{{% sequence_progress a %}}{{% sequence_progress b %}}")

    page = template.render(Context({"a": one, "b": other}))

    found = re.findall(r'data-seq-progress="([^"]+)"', page)
    assert [part(client.get(url).text, "text") for url in found] == [
        "Charge card",
        "Waiting for approval",
    ]


def test_numbers_are_for_machines_in_every_language(order):
    run = in_step(order)
    with translation.override("de"), override_settings(USE_THOUSAND_SEPARATOR=True):
        page = page_of(run)

    assert 'data-seq-poll="1000"' in page


def test_it_costs_a_page_the_queries_of_one_status(order):
    run = SequenceRun.objects.defer(*HEAVY).get(pk=in_step(order).pk)
    with CaptureQueriesContext(connection) as queries:
        page_of(run)

    found = [query["sql"] for query in queries if "storedplan" not in query["sql"]]
    assert len(found) == 1 + (connection.vendor != "sqlite"), "its steps, and the database's time"


def test_a_project_has_templates_of_its_own(client, order, settings, tmp_path):
    (tmp_path / "sequences").mkdir()
    (tmp_path / "sequences" / "_progress.html").write_text(
        "<p data-seq-now>{{ progress.percent }} {{ progress.texts|join:'+' }}</p>"
    )
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path]}]

    page = page_of(in_step(order))

    assert "<p data-seq-now>0 Charge card</p>" in page
    assert client.get(address_in(page)).text == "<p data-seq-now>0 Charge card</p>"
