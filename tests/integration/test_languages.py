"""A page in another language has no English word: all that it says can be translated, and is.

In these tests each translation is the message between brackets. What stands outside of all brackets
is data, code, or a text that nobody can translate.
"""

import gettext
import re
from dataclasses import dataclass
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from django.contrib.admin import site
from django.template import Context, Template
from django.urls import reverse
from django.utils import translation
from django.utils.translation import trans_real
from pydantic import BaseModel, Field

from sequences import Limit, Sequence, cron, every, step
from sequences.definitions.inputs import Input, Inputs
from sequences.exceptions import SequenceError
from sequences.inspection import health
from sequences.inspection.wording import explain
from sequences.models import StoredLimit
from sequences.testing import isolate_sequences, sync_schedules
from tests.browser import scenes
from tests.console import RUNS, url_of
from tests.limits import bank, billing, come, seconds

pytestmark = pytest.mark.django_db

ADMIN = "/admin/job_sequences/"
#: Pages of one kind that are looked at.
ALIKE = 2
ATTRIBUTES = {"title", "aria-label", "alt", "placeholder", "data-label"}
#: What is not for people, and what is shown as it is.
SKIPPED = {"script", "style", "code", "pre", "textarea"}
#: What has a form of its own: the message of an error, as the row of its attempt has it; a sequence
#: with its label; the key of a run that a schedule has started; a long name, cut or not.
STORED = re.compile(
    r"""\d+\ of\ \d+\ (?:child\ runs|items)\ of\ step\ .* | [\w ]+\ \(\w+\.\w+\)
    | schedule:\w*:now:[0-9a-f]+ | (?:a_step_whose_name_\w+)+ | a\ step\ whose\ name[\w ]*…?
    | vm:\d+:MainThread~[0-9a-f]+
    | [0-9a-f]{8}(?:-[0-9a-f]{4}){0,3}(?:-[0-9a-f]{12})?…?""",
    re.VERBOSE,
)
#: Names of the scenes' classes and steps, keys, errors and people; and what has no language.
DATA = re.compile(
    r"""\b(?:
    admin|ada|mia|shop|Approved|Leaf|Level[ ]?\d|Long|Report|Gone|Billing|reserve|release|approval
    |ship|child|charge|write|last|order-\d+|held|erased|undoing|family|mails|k{20,}…?|bank|worker|broken
    |Abort|ChildrenFailed|ValueError|sequences\.exceptions|card[ ]expired|carrier[ ]strike|boom
    |Loan|Packing|pack|invoice|check|decide|withdrawal|manager|list[ _]things|loan-\d|Approve|Refuse
    |ItemsFailed|thing[ ]\d+:[ ]out[ ]of[ ]stock|MonthlyReport|monthly[ ]report[ ]for[ ]accounting
    |paid[ ]in[ ]cash|the[ ]customer[ ]has[ ]changed[ ]her[ ]mind|the[ ]bank[ ]has[ ]asked[ ]us[ ]to
    |too[ ]many[ ]mails|hourly|s[ ]order|orders?
    |default|nightly|Europe/Berlin|UTC|Django|JSON|ID|manage\.py|run\.edit\(\)|None|True|False
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)


class Pseudo(gettext.NullTranslations):
    """A language in which each message is itself, between brackets."""

    def gettext(self, message):
        return f"⟦{message.rpartition(trans_real.CONTEXT_SEPARATOR)[2]}⟧" if message else ""

    def ngettext(self, singular, plural, number):
        return self.gettext(singular if number == 1 else plural)

    def language(self):
        return "de"

    to_language = language


@pytest.fixture
def pseudo(monkeypatch):
    monkeypatch.setitem(trans_real._translations, "de", Pseudo())
    monkeypatch.setattr(site, "enable_nav_sidebar", False)  # the apps of the project
    with translation.override("de"):
        yield


class Texts(HTMLParser):
    """All that a page says."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.attributes, self.skipped = [], [], 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.skipped += tag in SKIPPED
        names = ATTRIBUTES & values.keys() | {name for name in values if "-says-" in name}
        if values.get("type") in ("submit", "button"):
            names.add("value")
        self.attributes += [values.get(name) or "" for name in names]

    def handle_endtag(self, tag):
        self.skipped -= tag in SKIPPED

    def handle_data(self, text):
        if not self.skipped and text.strip():
            # What a picture has cut has lost its bracket.
            is_cut = text.count("⟦") > text.count("⟧") and "…" in text
            self.texts.append(f"{text}⟧" if is_cut else text)


def outside(text):
    """What no message has said."""
    while (rest := re.sub(r"⟦[^⟦⟧]*⟧", " ", text)) != text:
        text = rest
    return text


def english(html):
    """The texts of a page in which a word is left that nobody can translate."""
    page = Texts(html)
    texts = [*outside("\n".join(page.texts)).split("\n"), *map(outside, page.attributes)]
    texts = [DATA.sub(" ", STORED.sub(" ", text)).strip() for text in texts]
    return sorted({text for text in texts if re.search(r"[A-Za-z]{3,}", text)})


def links(html):
    found = re.findall(r'href="([^"#]+)', html)
    return [url.replace("&amp;", "&") for url in found if url.startswith((ADMIN, "?"))]


def kind_of(url):
    """The same for addresses of pages that look alike."""
    path, _, query = url.partition("?")
    names = sorted(pair.partition("=")[0] for pair in query.split("&"))
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+", "#", path), tuple(names)


def crawl(client, *starts):
    """Every page that is linked, some of each kind; with what is English on it."""
    queue, seen, counts, result = list(starts), set(starts), {}, {}
    while queue:
        url = queue.pop(0)
        response = client.get(url, follow=True)
        assert response.status_code == 200, url
        if "html" not in response.headers["Content-Type"]:
            continue
        html = response.content.decode()
        result[url] = english(html)
        for link in links(html):
            link = url.partition("?")[0] + link if link.startswith("?") else link
            counts[kind_of(link)] = counts.get(kind_of(link), 0) + (link not in seen)
            if link not in seen and counts[kind_of(link)] <= ALIKE:
                queue.append(link)
            seen.add(link)
    return result


@pytest.fixture
def runs():
    with isolate_sequences():
        yield scenes.play()


@pytest.fixture
def scene():
    with isolate_sequences():
        yield scenes.play_one


@pytest.fixture
def schedules(runs):
    class Report(Sequence):
        class Meta:
            app_label = "shop"
            schedule = every(timedelta(hours=1))

        @step
        def write(self): ...

    sync_schedules()
    Report.schedules.create("nightly", cron("0 3 * * *", timezone="Europe/Berlin"))
    Report.schedules.get().run_now()
    return Report


@pytest.fixture
def limits():
    for run in [billing(bank(), Limit("mails", rate=1, per=seconds(60))).start().run] * 2:
        come(run)
    StoredLimit.objects.get(name="bank").change(concurrency=2, reason="boom", by="ada")


def test_a_text_that_is_not_translated_is_found(pseudo):
    assert english("<p>Hello <b>there</b></p>") == ["Hello", "there"]
    assert english(f"<p title='Hello'>{translation.gettext('Save')} 3</p>") == ["Hello"]
    assert english(translation.gettext("Save")) == []


def test_the_console_has_no_english_word(admin_client, runs, schedules, pseudo):
    pages = map(url_of, runs.values())
    result = crawl(admin_client, ADMIN, RUNS, *pages)
    assert {url: texts for url, texts in result.items() if texts} == {}
    assert len(result) > 60


BULK = [
    "retry", "restart_from", "skip", "run_now", "deliver", "pause", "resume", "finish", "cancel",
    "set_deadline", "erase",
]  # fmt: skip


def test_what_is_done_to_many_has_no_english_word(admin_client, runs, pseudo):
    for action in BULK:
        form = {"action": f"{action}_runs", "_selected_action": [run.pk for run in runs.values()]}
        asked = admin_client.post(RUNS, form, follow=True).content.decode()
        step_name = re.search(r'<option value="(\w+)">⟦\w+ ', asked)
        answer = {"confirm": "yes", "reason": "boom", "step": step_name[1] if step_name else ""}
        done = admin_client.post(RUNS, form | answer, follow=True).content.decode()
        assert (action, english(asked), english(done)) == (action, [], [])
        assert "messagelist" in done, action


def test_a_refusal_has_no_english_word(admin_client, scene, pseudo):
    run = scene("waiting_for_an_event")
    url = url_of(run, "action", "erase")
    for path, form in [
        (url, {"confirm": "yes"}),
        (url.replace("erase", "edit"), {"text": "[", "version": "1"}),
        (
            url.replace("erase", "edit"),
            {"text": '{"a": NaN}', "version": run.version, "confirm": "yes"},
        ),
        (url.replace("erase", "skip") + "?step=ship", {"confirm": "yes", "reason": "boom"}),
        (reverse("admin:job_sequences_schedule_add"), {"cron": "x", "overlap": "skip"}),
    ]:
        html = admin_client.post(path, form, follow=True).content.decode()
        assert english(html) == [], path


def test_a_visitor_reads_no_english_word(runs, pseudo):
    page = Template("{% load sequences %}{% sequence_progress run %}")
    for run in runs.values():
        assert english(page.render(Context({"run": run}))) == []


def test_the_progress_keeps_the_language_of_its_page(client, scene):
    run = scene("on_hold")
    page = Template("{% load sequences %}{% sequence_progress run %}")
    for language, text in [("de", "Angehalten."), ("fr", "En pause."), ("en", "Paused.")]:
        with translation.override(language):
            html = page.render(Context({"run": run}))
        address = re.search(r'data-seq-progress="([^"]+)"', html)[1]
        answer = client.get(address, headers={"Accept-Language": "es"})
        assert text in html
        assert text in answer.content.decode()


def test_health_without_a_worker_has_no_english_word(scene, pseudo):
    scene("running_with_failed_items")
    assert english("\n".join(map(str, health.read().signs)).replace("`", "")) == []


class Order(BaseModel):
    total: int = Field(gt=0)


@dataclass
class Weight:
    weight: int


@pytest.fixture
def typed(limits):
    with isolate_sequences():

        class Checkout(Sequence[Order]):
            @step
            def charge(self): ...

        class Parcel(Sequence[Weight]):
            @step
            def send(self): ...

        yield Checkout, Parcel


REFUSALS = {
    "'0 25 * * *' ist kein gültiger Cron-Ausdruck: ungültige Stunde. Verwenden Sie fünf Felder": (
        lambda *_: cron("0 25 * * *")
    ),
    'Die Daten sind ungültig. data["total"]: „Input should be greater': (
        lambda checkout, _: checkout.start({"total": 0})
    ),
    "Die Daten sind ungültig. data: hat kein Feld 'wieght'. Meinten Sie 'weight'?": (
        lambda _, parcel: parcel.start({"wieght": 1})
    ),
    "Der Name des Zeitplans ist '\\u200b'. Er muss aus druckbaren Zeichen bestehen.": (
        lambda _, parcel: parcel.schedules.create("\u200b", every(timedelta(hours=1)))
    ),
    "Limit 'bank': Die Rate kann nicht 0 sein. Um alles anzuhalten, setzen Sie": (
        lambda *_: StoredLimit.objects.get(name="bank").change(rate=0)
    ),
    "data enthält 'site' (Web site) nicht. Ist 'sit' ein Schreibfehler dafür?": (
        lambda *_: Inputs({"site": Input("Web site", is_required=True)}).check({"sit": 1})
    ),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_what_a_form_refuses_is_said_in_the_language_of_the_page(typed, text):
    with pytest.raises(SequenceError) as caught:
        REFUSALS[text](*typed)
    with translation.override("de"):
        assert explain(caught.value).startswith(text)
    assert "Die " not in explain(caught.value)
