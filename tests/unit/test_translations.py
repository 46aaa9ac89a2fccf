"""The catalogues have every message of the code, translated, with the same placeholders."""

import gettext
import io
import os
import pickle
import re
from functools import cache

import django
import polib
import pytest
from django.utils import translation

from sequences.exceptions import InvalidTransition, Text
from sequences.inspection.wording import explain, format_duration
from sequences.models import RunStatus
from sequences.utils.durations import parse_duration
from tests import messages
from tests.messages import LANGUAGES, Message, messages_of, placeholders

UPDATE = "run: make messages"


def texts(entry):
    """The message as the code has it, with the translation of each of its forms."""
    if not entry.msgid_plural:
        return [(entry.msgid, entry.msgstr)]
    forms = entry.msgstr_plural
    return [(entry.msgid, forms[0]), (entry.msgid_plural, forms[1])]


@cache
def entries(language):
    return messages.catalogue(language)


def loaded(mo):
    return gettext.GNUTranslations(io.BytesIO(mo))._catalog


@cache
def own_messages():
    return messages.messages()


def of_django(language):
    """Django's own translations of texts without a context."""
    root = os.path.dirname(django.__file__)
    catalogues = [
        polib.pofile(f"{root}/{place}/locale/{language}/LC_MESSAGES/django.po")
        for place in ("contrib/admin", "conf")
    ]
    return {
        entry.msgid: entry.msgstr
        for catalogue in catalogues
        for entry in catalogue
        if entry.msgstr and not entry.msgctxt
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_has_the_messages_of_the_code_and_no_others(language):
    keys = {(entry.msgctxt or "", entry.msgid, entry.msgid_plural) for entry in entries(language)}
    own = {(message.context, message.text, message.plural) for message in own_messages()}
    assert keys == own, UPDATE
    assert len(own) > 600


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_message_is_translated(language):
    untranslated = [
        entry.msgid
        for entry in entries(language)
        if entry.fuzzy or entry.obsolete or not all(text for _, text in texts(entry))
    ]
    assert not untranslated


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_fills_in_what_its_message_does(language):
    wrong = [
        (text, translated)
        for entry in entries(language)
        for text, translated in texts(entry)
        if placeholders(text) != placeholders(translated)
    ]
    assert not wrong


#: Django 6.1 counts millions by a form of their own; it keeps catalogues of other rules apart.
PLURALS = {"de": "(n != 1)", "fr": "(n > 1)", "es": "(n != 1)"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_plural_forms_are_those_of_the_language(language):
    rule = f"nplurals=2; plural={PLURALS[language]};"
    assert entries(language).metadata["Plural-Forms"] == rule
    for entry in entries(language):
        assert not entry.msgid_plural or set(entry.msgstr_plural) == {0, 1}


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_compiled_is_what_is_written(language):
    mo = messages.path_of(language).with_suffix(".mo").read_bytes()
    assert loaded(mo) == loaded(entries(language).to_binary()), UPDATE


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_that_django_has_too_is_translated_as_django_does(language):
    # All catalogues become one: another translation would change pages that are not ours.
    django_texts = of_django(language)
    differing = {
        entry.msgid: entry.msgstr
        for entry in entries(language)
        if not entry.msgctxt and django_texts.get(entry.msgid, entry.msgstr) != entry.msgstr
    }
    assert not differing


@pytest.mark.parametrize("language", LANGUAGES)
def test_files_name_no_lines_so_that_a_change_of_code_is_no_change_of_them(language):
    assert not any(entry.occurrences for entry in entries(language))


def test_french_keeps_its_marks_on_the_line():
    loose = [
        text
        for entry in entries("fr")
        for _, text in texts(entry)
        if re.search(r" [:;?!»]|« |(?<=\w)'(?=\w)|(?<![\u00a0\d*./])[;?!»](?!\w)", text)
    ]
    assert not loose


@pytest.mark.parametrize(("language", "marks"), [("de", "„“"), ("fr", "«»"), ("es", "«»")])
def test_quotation_marks_are_those_of_the_language(language, marks):
    for entry in entries(language):
        for text, translated in texts(entry):
            assert translated.count(marks[0]) == translated.count(marks[1])
            if "“" in text:
                assert marks[0] in translated, text
            assert "”" not in translated, text


def test_the_messages_of_a_module_are_found_under_any_name_of_the_function():
    source = """
from django.utils.translation import gettext as now, ngettext_lazy, pgettext_lazy as in_place
now("One " "text")
ngettext_lazy("%(count)d run", "%(count)d runs", "count")
in_place("time", "started")
now(variable)
"""
    assert list(messages_of(source, ".py")) == [
        Message("One text"),
        Message("%(count)d run", "%(count)d runs"),
        Message("started", context="time"),
    ]


def test_the_messages_of_a_template_are_found():
    source = """{% load i18n %}{% translate "It's" as text %}<a title="{% translate 'A' %}">
{% blocktranslate count n=number %}{{ n }} run{% plural %}{{ n }} runs{% endblocktranslate %}
{% translate "started" context "time" %} {{ title|default:_("None") }}"""
    assert list(messages_of(source, ".html")) == [
        Message("It's"),
        Message("A"),
        Message("%(n)s run", "%(n)s runs"),
        Message("started", context="time"),
        Message("None"),
    ]


@pytest.mark.parametrize(
    ("language", "text"), [("de", "1,5\u00a0s"), ("fr", "2\u00a0j 3\u00a0h"), ("es", "20\u00a0min")]
)
def test_a_duration_is_read_as_it_is_shown(language, text):
    value = parse_duration(text)
    with translation.override(language):
        assert format_duration(value) == text
    assert value == parse_duration(text.replace("j", "d").replace(",", "."))


def test_a_refusal_is_whole_in_each_language():
    problem = Text(
        "its status is %(status)s. Allowed: %(allowed)s.",
        status=RunStatus.FAILED,
        allowed=(RunStatus.RUNNING, RunStatus.PAUSED),
    )
    assert problem == "its status is failed. Allowed: running or paused."
    refusal = InvalidTransition(action="cancel", run=7, problem=problem)
    expected = {
        "en": "Its status is failed. Allowed: running, paused.",
        "de": "Der Zustand ist „fehlgeschlagen“. Erlaubt: läuft, angehalten.",
        "es": "Su estado es «fallida». Permitidos: en ejecución, en pausa.",
    }
    for language, sentence in expected.items():
        with translation.override(language):
            assert explain(refusal) == sentence
    assert str(refusal) == f"Cannot cancel run 7: {problem}", "code speaks English"
    assert pickle.loads(pickle.dumps(refusal)).problem.values == problem.values
