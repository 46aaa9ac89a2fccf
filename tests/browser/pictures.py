"""The pictures of every page and state, for people to look at: `make pictures` runs this.

They go to the directory that PICTURES names. No run of the tests collects this file by itself.
"""

import os
from pathlib import Path

import pytest
from django.urls import reverse

from . import scenes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.django_db(transaction=True)]

DESKTOP, PHONE = 1440, 390
TALLEST = 4_000


def others(runs):
    """The pages outside of the console that show runs: of an object, and of visitors."""
    run, about = runs["waiting_with_any_of"], runs["waiting_for_an_event"].subject
    return {
        "object with a run": reverse("admin:orders_order_change", args=[about.pk]),
        "visitor answers": run.deliver_url("approval", {"ok": True}, by="ada@example.com"),
        "visitor after that": runs["succeeded"].deliver_url("approval"),
    }


def take(page, into, name, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    height = min(page.evaluate("document.documentElement.scrollHeight"), TALLEST)
    clip = {"x": 0, "y": 0, "width": width, "height": height}
    screen = "phone-" if width == PHONE else ""
    path = into / f"{name.replace(' ', '-')}-{screen}{scheme}.png"
    page.screenshot(path=path, full_page=True, clip=clip)


def take_all(page, into, name):
    for scheme in ("light", "dark"):
        for width in (DESKTOP, PHONE):
            take(page, into, name, scheme, width)


def test_every_page_and_state_is_in_the_pictures(console):
    into = Path(os.environ["PICTURES"])
    into.mkdir(parents=True, exist_ok=True)
    for name in scenes.walk(console):
        take_all(console, into, name)


def test_the_pages_outside_of_the_console_are_in_the_pictures(console):
    into = Path(os.environ["PICTURES"])
    for name, path in others(scenes.play()).items():
        console.goto(path)
        take_all(console, into, name)
