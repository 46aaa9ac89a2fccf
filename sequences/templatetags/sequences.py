"""``{% load sequences %}``: the progress of a run on a page of the project."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from html import unescape
from typing import Any

from django import template
from django.http import HttpRequest
from django.template import Context
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import get_language

from ..exceptions import SequenceError
from ..inspection.status import DisplayOptions, Status
from ..links import DAY, signed_url
from ..models import SequenceRun
from ..sequence import Sequence

register = template.Library()


@register.inclusion_tag("sequences/progress.html", takes_context=True)
def sequence_progress(
    context: Context,
    run: SequenceRun | Sequence[Any],
    *,
    labels: Mapping[str, Any] | None = None,
    done_url: Any = "",
    done_text: Any = "",
    failed_text: Any = "",
    cancelled_text: Any = "",
    redirect: bool = False,
    expires: timedelta = DAY,
) -> dict[str, Any]:
    """A progress bar of this run, with the current step in words; updates until the run has ended.

    All texts are plain text, not HTML. ``labels``: texts by the names of steps. ``done_url``: where
    a success leads to, on this site; with ``redirect``, the browser goes there by itself.
    ``expires``: how long the page may poll for updates after it was loaded.
    """
    row = _row(run)
    request = context.get("request")
    shows = DisplayOptions(
        labels={str(name): _text(label) for name, label in (labels or {}).items()},
        done_url=_on_this_site(_text(done_url), request),
        done_text=_text(done_text),
        failed_text=_text(failed_text),
        cancelled_text=_text(cancelled_text),
        redirect=bool(redirect),
        language=get_language() or "",
    )
    return {
        "progress": Status(row, shows),
        "url": signed_url("progress", row.pk, expires, **shows.as_json()),
        "nonce": _nonce(context, request),
    }


def _nonce(context: Context, request: HttpRequest | None) -> Any:
    """The nonce of Django or django-csp, which is false until something renders it."""
    nonce = context.get("csp_nonce")
    return getattr(request, "csp_nonce", None) if nonce is None else nonce


def _row(run: object) -> SequenceRun:
    row = run.run if isinstance(run, Sequence) else run
    if isinstance(row, SequenceRun):
        return row
    raise SequenceError(
        f"sequence_progress shows a run, or a sequence that was started, not {run!r:.100}."
    )


def _text(value: Any) -> str:
    """As before a template escaped it: it travels unescaped, and is escaped where it is shown."""
    if hasattr(value, "__html__"):
        return unescape(value.__html__() + "")  # a sum is not a SafeString
    return str(value or "")


def _on_this_site(url: str, request: HttpRequest | None) -> str:
    host = {request.get_host()} if request is not None else None
    secure = request is not None and request.is_secure()
    if not url or url_has_allowed_host_and_scheme(url, host, require_https=secure):
        return url
    raise SequenceError(
        f"sequence_progress links only to pages of this site, but done_url is {url!r:.200}."
        " Use a path, such as one from {% url %}."
    )
