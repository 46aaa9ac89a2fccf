"""The examples that others of this field show, as their users would bring them here.

What they do is written down as an `Entry`, so that the tests see it from their own process.
"""

from collections.abc import Iterator

import dramatiq
from pydantic import BaseModel

from sequences import Abort, Sequence, job, load, step

from .gates import Gate
from .models import Entry


def record(sequence, note=""):
    Entry.objects.create(run=sequence.run.pk, step=sequence.step_run.step, note=note)


# 1. sidekiq-sequence: a class for each step, one row of data for all of them


class CreateMessage:
    def perform(self, sequence):
        sequence.data["message"] = f"{sequence.data['name']} ({sequence.data['github']})"
        record(sequence)


class AssignMessage:
    def perform(self, sequence):
        sequence.data["team"] = f"those who know {sequence.data['message']}"
        record(sequence)


class SendMessage:
    def perform(self, sequence):
        if sequence.attempt == 1:
            raise ConnectionError("the mail server is down")
        record(sequence, f"to {sequence.data['team']}")


class FieldContactForm(Sequence):
    """Starts with keywords; each step changes the data for the next."""

    class Meta:
        min_backoff = max_backoff = 20

    create_message = step(CreateMessage)
    assign_message = step(AssignMessage)
    send_message = step(SendMessage, max_retries=5)


# 2. kiqchestra: jobs, whose order and arguments are given at the start


def kiqchestra(numbers, sequence):
    total = 0
    for done, number in enumerate(numbers, start=1):
        total += number
        sequence.progress(done, len(numbers), f"added {number}")
    record(sequence, str(total))
    return total


@job("kiqchestra_a")
def a_job(numbers: list[int], sequence):
    return kiqchestra(numbers, sequence)


@job("kiqchestra_b")
def b_job(numbers: list[int], sequence):
    return kiqchestra(numbers, sequence)


@job("kiqchestra_c")
def c_job(numbers: list[int], sequence):
    return kiqchestra(numbers, sequence)


@job("kiqchestra_d")
def d_job(numbers: list[int], total: int, sequence):
    return kiqchestra([*numbers, total], sequence)


KIQCHESTRA = {
    "steps": {
        "a_job": {"job": "kiqchestra_a", "after": [], "args": {"numbers": [1, 2, 3]}},
        "b_job": {"job": "kiqchestra_b", "after": ["a_job"], "args": {"numbers": [4, 5]}},
        "c_job": {"job": "kiqchestra_c", "after": ["a_job"], "args": {"numbers": [6]}},
        "d_job": {
            "job": "kiqchestra_d",
            "after": ["b_job", "c_job"],
            "args": {"numbers": [7]},
            "inputs": {"total": "steps.c_job"},
        },
    }
}


# 3. sidekiq-workflow and dramatiq-workflow: chains and groups, typed, with a memory


@job("workflow_task")
def task(number: int, sequence):
    record(sequence, str(number))


class Picture(BaseModel):
    name: str
    width: int


@job("workflow_load")
def load_picture(name: str) -> Picture:
    return Picture(name=name, width=800)


@job("workflow_halve")
def halve(picture: Picture, times: int = 1) -> Picture:
    return picture.model_copy(update={"width": picture.width // 2**times})


@job("workflow_show")
def show(picture: Picture, sequence) -> str:
    text = f"{picture.name}: {picture.width}"
    record(sequence, text)
    return text


@job("digest_collect")
def collect(language: str, limit: int) -> list[str]:
    return [f"{language}-{number}" for number in range(limit)]


@job("digest_write")
def write(address: str, titles: list[str]) -> str:
    return f"To {address}: {', '.join(titles)}"


# 4. orchis: flows in YAML


class Page(BaseModel):
    text: str


@job("orchis_list_pages")
def list_pages(site: str) -> dict[str, str | list[str]]:
    return {"site": site, "pages": [f"{site}/{name}" for name in ("one", "two", "three")]}


@job("orchis_title")
def title(page: str) -> str:
    return page.rpartition("/")[2].title()


@job("orchis_fetch_page")
def fetch_page(page: str, polite: bool = False) -> Page:
    assert polite
    return Page(text=f"the page {page}")


@job("orchis_count_words")
def count_words(text: str) -> int:
    return len(text.split())


@job("orchis_report")
def report(site: str, titles: list[str], pages: list[dict[str, int | str | bool]]) -> str:
    words = sum(int(page["words"]) for page in pages)
    return f"{site}: {', '.join(titles)}; {words} words"


load("flows/*.yaml")


# 5. distribot: phases, whose handlers list their tasks and work on them side by side


class Search(Sequence):
    """pending → searching → fetching-pages → finished, or → error, which mails."""

    class Meta:
        max_retries = 1
        min_backoff = max_backoff = 20

    @step
    def pending(self):
        record(self)

    # The phase `searching` has one handler.

    def terms(self) -> Iterator[str]:
        yield from self.data["terms"]

    @step(each=terms, on_error="error")
    def search(self, term):
        if gate := self.data.get("gate"):
            Gate(gate).pass_through()
        if term == "nothing":
            raise Abort("nothing was found")
        record(self, term)
        return [f"{term}/1", f"{term}/2"]

    # The phase `fetching-pages` has two, which work side by side.

    def pages(self) -> Iterator[str]:
        for found in self.results("search"):
            yield from found

    @step(each=pages, after=search)
    def fetch_pages(self, page):
        record(self, page)

    @step(each=pages, after=search)
    def fetch_pictures(self, page):
        record(self, page)

    @step
    def finished(self):
        record(self)

    @step
    def error(self):
        record(self, f"mail: {self.failure.step}")


# 6. Dramatiq's pipelines and groups, Celery's chain and chord: tasks that exist already


@dramatiq.actor(actor_name="field_add", max_retries=3)
def add(x, y):
    return x + y


@dramatiq.actor(actor_name="field_double")
def double(x):
    return 2 * x


@dramatiq.actor(actor_name="field_total")
def total(numbers):
    return sum(numbers)


class Pipeline(Sequence):
    """`add | double | double`: each takes what the one before returned."""

    added = step(add, args=lambda self: (self.data["x"], self.data["y"]))
    doubled = step(double, args=lambda self: [self.result("added")])
    doubled_again = step(double, args=lambda self: [self.result("doubled")])

    @step
    def keep(self):
        self.data["result"] = self.result("doubled_again")


class Group(Sequence):
    """Side by side, then what waits for all."""

    first = step(add, args=lambda self: (1, 2), after=[])
    second = step(double, args=lambda self: [5], after=[])

    @step
    def completed(self):
        self.data["results"] = [self.result("first"), self.result("second")]


class Chord(Sequence):
    """`chord(add of each pair)(total)`: as many as the data has."""

    @step(each="pairs", max_retries=3)
    def header(self, pair):
        return add(*pair)

    callback = step(total, args=lambda self: [list(self.results("header"))])

    @step
    def keep(self):
        self.data["total"] = self.result("callback")
