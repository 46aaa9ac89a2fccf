"""The palette: every state, in light and dark, with enough contrast to be read."""

import re
from itertools import combinations

import pytest

from sequences.diagrams import STATUSES
from sequences.diagrams.markup import stylesheet
from sequences.models import RunStatus, StepStatus

CSS = re.sub(r"/\*.*?\*/", "", stylesheet(), flags=re.S)
LIGHT = r":root \{(.*?)\}"
DARK = r':root\[data-theme="dark"\] \{(.*?)\}'
AUTO = r'@media \(prefers-color-scheme: dark\) \{\s*:root:not\(\[data-theme="light"\]\) \{(.*?)\}'
#: What Django's admin has behind its content.
ADMIN = {"light": ["#ffffff", "#f8f8f8"], "dark": ["#121212", "#212121"]}


def palette(rule):
    block = re.search(rule, CSS, re.S)[1]
    return dict(re.findall(r"--seq-([\w-]+):\s*(#[0-9a-f]{6});", block))


THEMES = {"light": palette(LIGHT), "dark": palette(DARK)}


def luminance(colour):
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_counted_as_it_should_be():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_every_state_of_runs_and_steps_has_its_colours_and_its_class():
    assert set(RunStatus.values) | set(StepStatus.values) | {"pending"} == set(STATUSES)
    for status in STATUSES:
        assert re.search(rf"\.seq-{status} \{{[^}}]*--seq-ink: var\(--seq-{status}-ink\)", CSS)
        for colours in THEMES.values():
            assert {f"{status}-{part}" for part in ("ink", "fill", "line")} <= colours.keys()


def test_the_system_s_dark_is_the_same_as_the_admin_s():
    assert palette(AUTO) == THEMES["dark"]
    assert THEMES["light"].keys() == THEMES["dark"].keys()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("status", STATUSES)
def test_a_state_can_be_read(theme, status):
    colours = THEMES[theme]
    ink, fill, line = (colours[f"{status}-{part}"] for part in ("ink", "fill", "line"))
    assert contrast(ink, fill) >= 4.5
    assert contrast(colours["text"], fill) >= 4.5
    assert contrast(colours["quiet"], fill) >= 4.5
    for page in (colours["page"], *ADMIN[theme]):
        assert contrast(line, page) >= 3
        assert contrast(ink, page) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_lines_and_texts_beside_boxes_can_be_seen(theme):
    colours = THEMES[theme]
    for page in (colours["page"], *ADMIN[theme]):
        assert contrast(colours["edge"], page) >= 3
        assert contrast(colours["passed"], page) >= 4.5
        assert contrast(colours["quiet"], page) >= 4.5
        assert contrast(colours["focus"], page) >= 3


@pytest.mark.parametrize("theme", THEMES)
def test_no_two_states_have_the_same_colour(theme):
    inks = {status: THEMES[theme][f"{status}-ink"] for status in STATUSES}
    assert not [pair for pair in combinations(STATUSES, 2) if inks[pair[0]] == inks[pair[1]]]


def test_nothing_moves_for_those_who_do_not_want_it():
    quiet = re.search(r"@media \(prefers-reduced-motion: no-preference\) \{(.*?)\n\}", CSS, re.S)
    assert "animation:" in quiet[1]
    assert CSS.count("animation:") == quiet[1].count("animation:")


def test_whoever_has_chosen_colours_gets_those():
    block = CSS[CSS.index("@media (forced-colors: active)") :]
    assert "CanvasText" in block
    assert not re.search(r"#[0-9a-f]{3,8}\b", block)


def test_nothing_is_loaded_from_elsewhere():
    assert not re.search(r"url\(|@import|</", CSS)
