"""The messages of the package, and the catalogues of their translations.

    make messages

updates the catalogues in `sequences/locale` from the code, compiles them, and lists what is left to
translate. It needs only Python: nobody has to install gettext.
"""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import polib
from django.utils.translation.template import templatize

PACKAGE = Path(__file__).parent.parent / "sequences"
LANGUAGES = ("de", "fr", "es")
#: Django's own: catalogues whose plural forms agree are merged into one.
PLURALS = {"de": "n != 1", "fr": "n > 1", "es": "n != 1"}
#: What each function of Django takes: (c)ontext, (s)ingular, (p)lural.
ARGUMENTS = {"gettext": "s", "ngettext": "sp", "pgettext": "cs", "npgettext": "csp"}
FUNCTIONS = {
    f"{name}{suffix}": arguments
    for name, arguments in ARGUMENTS.items()
    for suffix in ("", "_lazy", "_noop")
}
_LITERAL = r"""u?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_CALL = re.compile(rf"\b(n?p?gettext|_)\(({_LITERAL}(?:\s*,\s*{_LITERAL})*)", re.DOTALL)
_PERCENT = re.compile(r"%\(\w+\)[#0\- +]*\d*(?:\.\d+)?[a-zA-Z]|%%")
_BRACE = re.compile(r"\{\w+\}")


class Message(NamedTuple):
    """A text of the code."""

    text: str
    plural: str = ""
    context: str = ""

    @property
    def flags(self) -> list[str]:
        """How translators and their tools must treat it."""
        if _PERCENT.search(self.text):
            return ["python-format"]
        return ["python-brace-format"] if _BRACE.search(self.text) else []


def placeholders(text: str) -> list[str]:
    """What is filled in later."""
    return sorted(_PERCENT.findall(text) or _BRACE.findall(text))


# The code


def messages() -> list[Message]:
    """Every message of the package, once, in the order of the files."""
    sources = sorted(
        path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html") and path.is_file()
    )
    unique: dict[tuple[str, str], Message] = {}
    for message in chain.from_iterable(
        messages_of(path.read_text(), path.suffix) for path in sources
    ):
        key = (message.context, message.text)
        if message.plural or key not in unique:
            unique[key] = message
    return list(unique.values())


def messages_of(source: str, suffix: str) -> Iterator[Message]:
    """Those of one file."""
    return _of_template(source) if suffix == ".html" else _of_module(ast.parse(source))


def _of_module(tree: ast.Module) -> Iterator[Message]:
    names = _imported(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        if isinstance(node.func, ast.Name):
            arguments = names.get(node.func.id, "")
            literals = _literals(node.args[: len(arguments)])
            if arguments and len(literals) == len(arguments):
                yield _message(arguments, literals)


def _imported(tree: ast.Module) -> dict[str, str]:
    """What a module calls the functions of translation, and what they take."""
    names = {"_": "s"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "django.utils.translation":
            names |= {
                alias.asname or alias.name: FUNCTIONS[alias.name]
                for alias in node.names
                if alias.name in FUNCTIONS
            }
    return names


def _literals(nodes: list[ast.expr]) -> list[str]:
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return [value for value in values if isinstance(value, str)]


def _of_template(source: str) -> Iterator[Message]:
    for call in _CALL.finditer(templatize(source)):
        name, literals = call.group(1), re.findall(_LITERAL, call.group(2), re.DOTALL)
        yield _message(FUNCTIONS.get(name, "s"), [ast.literal_eval(text) for text in literals])


def _message(arguments: str, literals: list[str]) -> Message:
    values = dict(zip(arguments, literals, strict=True))
    return Message(values["s"], values.get("p", ""), values.get("c", ""))


# The catalogues


def path_of(language: str) -> Path:
    return PACKAGE / "locale" / language / "LC_MESSAGES" / "django.po"


def catalogue(language: str) -> polib.POFile:
    """The stored one, or an empty one."""
    path = path_of(language)
    return polib.pofile(str(path), wrapwidth=0) if path.exists() else polib.POFile(wrapwidth=0)


def updated(language: str) -> polib.POFile:
    """The catalogue with every message of the code, in its order, and no other."""
    old = {(entry.msgctxt or "", entry.msgid): entry for entry in catalogue(language)}
    new = polib.POFile(wrapwidth=0)
    new.metadata = {
        "Project-Id-Version": "django-dramatiq-sequences",
        "Language": language,
        "MIME-Version": "1.0",
        "Content-Type": "text/plain; charset=UTF-8",
        "Content-Transfer-Encoding": "8bit",
        "Plural-Forms": f"nplurals=2; plural=({PLURALS[language]});",
    }
    new.extend(_entry(message, old.get((message.context, message.text))) for message in messages())
    return new


def _entry(message: Message, old: polib.POEntry | None) -> polib.POEntry:
    entry = polib.POEntry(msgid=message.text, msgctxt=message.context or None, flags=message.flags)
    if old is not None:
        entry.tcomment = old.tcomment
    if message.plural:
        forms = old.msgstr_plural if old is not None else {}
        entry.msgid_plural = message.plural
        entry.msgstr_plural = {form: forms.get(form, "") for form in (0, 1)}
    elif old is not None:
        entry.msgstr = old.msgstr
    return entry


def update() -> None:
    """What ``make messages`` does."""
    for language in LANGUAGES:
        path, new = path_of(language), updated(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        new.save(str(path))
        new.save_as_mofile(str(path.with_suffix(".mo")))
        missing = [entry.msgid for entry in new if not entry.translated()]
        print(f"{language}: {len(new)} messages, {len(missing)} to translate")
        for text in missing:
            print(f"    {text}")


if __name__ == "__main__":
    update()
