"""A filter for ``LOGGING``: says which step a record is about, and hides its secrets.

The filter works on handlers of any logger, with any formatter: whatever is logged while a step runs
is about that step, whichever library logs it, and so is Dramatiq's report of a failure.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import date, time
from typing import Any

from .data.redaction import HIDDEN, hide
from .engine import current

__all__ = ["StepFilter"]

#: The fields added to each record; empty outside a step.
FIELDS = ("sequence", "run", "step", "item", "attempt")
_DESCRIBED = "_sequences_described"
_ORDINARY = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", _DESCRIBED}


class StepFilter(logging.Filter):
    """Passes every record, adds the five `FIELDS`, and hides secrets.

    It hides the strings that the sequence's ``Meta.redact`` selects in the run's `data`: in the
    message, its arguments, the traceback, and fields of ``extra``. A traceback that quotes one is
    kept as text (``exc_text``) without the exception (``exc_info``), because a formatter would
    render the exception again. A field of ``extra`` with the name of one of the five is left alone.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        _describe(record)
        return True


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _ORDINARY}


def _describe(record: logging.LogRecord) -> None:
    """Process the record once: a second handler, perhaps in another thread, finds it done."""
    if _DESCRIBED in vars(record):
        return
    vars(record)[_DESCRIBED] = True
    attempt = current.current_attempt()
    extra = _extra(record).keys()
    for name, value in _fields_of(attempt).items():
        vars(record).setdefault(name, value)
    if attempt is not None:
        try:
            _hide(record, extra, _secrets(attempt))
        # Logging must neither fail a step nor let through a record that was not checked.
        except Exception:
            _blank(record, extra)


def _blank(record: logging.LogRecord, extra: Collection[str]) -> None:
    record.msg, record.args = "Message withheld: it could not be searched for secrets.", ()
    record.exc_info = record.exc_text = record.stack_info = None
    for name in extra:
        setattr(record, name, HIDDEN)


class _Thread(threading.local):
    searches = False


_thread = _Thread()


def _secrets(attempt: current.CurrentAttempt) -> Iterable[str]:
    """The secrets of the current attempt. Rendering a value of `data` may log in turn."""
    if _thread.searches:
        raise RecursionError
    try:
        _thread.searches = True
        return attempt.secrets()
    finally:
        _thread.searches = False


def _fields_of(attempt: current.CurrentAttempt | None) -> dict[str, Any]:
    if attempt is None:
        return dict.fromkeys(FIELDS, "")
    claim = attempt.claim
    item: Any = claim.item if claim.item >= 0 else ""
    values = (claim.sequence, str(claim.run_id), claim.step, item, claim.attempts + 1)
    return dict(zip(FIELDS, values, strict=True))


def _hide(record: logging.LogRecord, extra: Collection[str], secrets: Iterable[str]) -> None:
    if not secrets:
        return
    _hide_message(record, secrets)
    if record.exc_info:
        _hide_exception(record, secrets)
    for name in ("exc_text", "stack_info", *extra):
        _hide_field(record, name, secrets)


def _hide_message(record: logging.LogRecord, secrets: Iterable[str]) -> None:
    text = _message(record)
    # A formatter may write the parts instead: if the message is a mapping, as JSON.
    parts = [*_texts(record.msg), *(_texts(record.args) if record.args else ())]
    if _has_secret([text, *parts], secrets):
        is_json = not record.args and not isinstance(record.msg, str)
        record.msg, record.args = hide(_as_json(record.msg) if is_json else text, secrets), ()


def _hide_exception(record: logging.LogRecord, secrets: Iterable[str]) -> None:
    assert record.exc_info
    trace = logging.Formatter().formatException(record.exc_info)
    if (hidden := hide(trace, secrets)) != trace:
        record.exc_info, record.exc_text = None, hidden


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the handler will report the error and quote the arguments
        return f"{record.msg} {record.args}"


def _hide_field(record: logging.LogRecord, name: str, secrets: Iterable[str]) -> None:
    value = vars(record)[name]
    if value is not None and _has_secret(_texts(value), secrets):
        setattr(record, name, hide(_as_json(value), secrets))


def _has_secret(texts: Iterable[str], secrets: Iterable[str]) -> bool:
    return any(hide(text, secrets) != text for text in texts)


def _texts(value: Any) -> Iterator[str]:
    """The forms in which formatters may write a secret: JSON escapes some characters."""
    yield str(value)
    if not isinstance(value, str):
        yield from (repr(value), _as_json(value), _as_json(value, default=str))


def _iso_format(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _as_json(value: Any, default: Callable[[Any], str] = _iso_format) -> str:
    if not isinstance(value, dict | list | tuple):
        return default(value)
    try:
        return json.dumps(value, default=default)
    except (TypeError, ValueError):  # keys that are not strings, or a circular reference
        return str(value)
