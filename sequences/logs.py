"""For ``LOGGING``: which step a line is about, and none of its secrets.

Both classes work without the other, on handlers of any loggers: what is logged while a step is
performed is about that step, whoever logs it, and so is what Dramatiq logs of its failure.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any

from .data.redaction import HIDDEN, hide
from .engine import current

__all__ = ["JSONFormatter", "StepFilter"]

#: What a record gets; empty outside of a step.
FIELDS = ("sequence", "run", "step", "item", "attempt")
_DESCRIBED = "_sequences_described"
_ORDINARY = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", _DESCRIBED}


class StepFilter(logging.Filter):
    """Lets every record pass; gives it the five `FIELDS`, and hides secrets in it.

    Hidden are the texts that the sequence's ``Meta.redact`` names in the run's `data`: in the
    message, its arguments, the traceback, and in fields of ``extra``. A field of ``extra`` that
    has the name of one of the five stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        _describe(record)
        return True


class JSONFormatter(logging.Formatter):
    """One JSON object on each line, with what `StepFilter` adds, and what was given as ``extra``.

    ``time`` (UTC), ``level``, ``logger``, ``message``, the five (null outside of a step), and
    ``exception`` and ``stack``, if there are any.
    """

    def format(self, record: logging.LogRecord) -> str:
        _describe(record)
        fields = self.fields(record)
        try:
            return json.dumps(fields, default=str, allow_nan=False)
        except (TypeError, ValueError):  # keys that are no texts, NaN, a circle
            return json.dumps({name: _plain(value) for name, value in fields.items()})

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What is written; for subclasses to change."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: _or_none(getattr(record, name)) for name in FIELDS}
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        texts = {"exception": record.exc_text, "stack": record.stack_info}
        fields |= {name: text for name, text in texts.items() if text}
        return {**_extra(record), **fields}


def _or_none(value: Any) -> Any:
    return None if value == "" else value


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | None) else str(value)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _ORDINARY}


def _describe(record: logging.LogRecord) -> None:
    """Once: a second handler, perhaps in another thread, finds it done."""
    if _DESCRIBED in vars(record):
        return
    vars(record)[_DESCRIBED] = True
    attempt = current.current_attempt()
    given = _extra(record).keys()
    for name, value in _fields_of(attempt).items():
        vars(record).setdefault(name, value)
    if attempt is not None:
        try:
            _hide(record, given, _secrets(attempt))
        except Exception:  # logging must not fail a step, nor let out what it has not seen
            _blank(record, given)


def _blank(record: logging.LogRecord, given: Collection[str]) -> None:
    record.msg, record.args = "A message that could not be searched for secrets.", ()
    record.exc_info = record.exc_text = record.stack_info = None
    for name in given:
        setattr(record, name, HIDDEN)


class _Thread(threading.local):
    searches = False


_thread = _Thread()


def _secrets(attempt: current.CurrentAttempt) -> Iterable[str]:
    """Those of the attempt. A value of `data` whose text is asked for may log in its turn."""
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


def _hide(record: logging.LogRecord, given: Collection[str], secrets: Iterable[str]) -> None:
    if not secrets:
        return
    text = _message(record)
    if (hidden := hide(text, secrets)) != text:
        record.msg, record.args = hidden, ()
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    for name in ("exc_text", "stack_info", *given):
        _hide_field(record, name, secrets)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the handler will say what is wrong, and quote the arguments
        return f"{record.msg} {record.args}"


def _hide_field(record: logging.LogRecord, name: str, secrets: Iterable[str]) -> None:
    value = vars(record)[name]
    if value is None:
        return
    # A formatter may write it as JSON, in which what is inside of it looks otherwise.
    texts = _as_json(value), str(value)
    if any(hide(text, secrets) != text for text in texts):
        setattr(record, name, hide(texts[0], secrets))


def _as_json(value: Any) -> str:
    if not isinstance(value, dict | list | tuple):
        return str(value)
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError):
        return str(value)
