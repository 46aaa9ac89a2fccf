"""Pages of runs for the visitors of a project: how far a run has got, and links that deliver."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec
from uuid import UUID

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import translation
from django.utils.cache import add_never_cache_headers, patch_vary_headers
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_safe

from .exceptions import InvalidData, InvalidTransition
from .inspection import deliveries, status
from .inspection.deliveries import EventPage, ExpiredDelivery
from .inspection.status import Status, StatusNotFound

P = ParamSpec("P")
View = Callable[Concatenate[HttpRequest, P], HttpResponse]


def for_visitors(view: View[P]) -> View[P]:
    """Allow reading only, and prevent caching, indexing and leaking the URL."""
    return _unlisted(require_safe(view))


def _unlisted(view: View[P]) -> View[P]:
    @login_not_required  # the signed URL, or the permission check, is the access control
    @wraps(view)
    def answer(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        response = view(request, *args, **kwargs)
        add_never_cache_headers(response)
        patch_vary_headers(response, ["Accept-Language", "Cookie"])
        response["X-Robots-Tag"] = "noindex"
        # Sites that the page links to must not learn its URL.
        response["Referrer-Policy"] = "no-referrer"
        return response

    return answer


@for_visitors
def run_status(request: HttpRequest, token: str) -> HttpResponse:
    """The status of the run behind a signed URL, as JSON."""
    return _json(lambda: status.by_token(token))


@for_visitors
def status_by_id(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The status of this run as JSON, for users whom the project's permission admits."""
    return _json(lambda: status.by_id(request, pk))


@for_visitors
def progress(request: HttpRequest, token: str) -> HttpResponse:
    """The progress of the run behind a signed URL, as a fragment of HTML."""
    try:
        run_progress = status.by_token(token)
    except StatusNotFound as error:
        context = {"text": error.text}
        return render(request, "sequences/_gone.html", context, status=error.http_status)
    with translation.override(run_progress.shows.language or translation.get_language()):
        return render(request, "sequences/_progress.html", {"progress": run_progress})


# Only those who know the URL can deliver, and another site cannot make a browser send it. So no
# CSRF cookie is needed, which mail clients may block.
@csrf_exempt
@_unlisted
@require_http_methods(["GET", "HEAD", "POST"])
def deliver(request: HttpRequest, token: str) -> HttpResponse:
    """Show what a signed URL delivers; a POST delivers it, once."""
    try:
        page = deliveries.by_token(token)
        return _deliver(request, page) if request.method == "POST" else _event(request, page)
    except StatusNotFound as error:
        context = {"text": error.text}
        return render(request, "sequences/deliver.html", context, status=error.http_status)


def _event(request: HttpRequest, page: EventPage) -> HttpResponse:
    context = {"page": page, "form": page.form() if page.state == "open" else None}
    return render(request, "sequences/deliver.html", context)


def _deliver(request: HttpRequest, page: EventPage) -> HttpResponse:
    if page.state != "open":
        return _event(request, page)
    form = page.form(request.POST)
    if form is not None and not form.is_valid():
        context = {"page": page, "form": form}
        return render(request, "sequences/deliver.html", context, status=400)
    payload = page.link.payload if form is None else form
    try:
        counts = page.run.deliver(page.link.event, payload, by=page.link.by, reason=page.link.mark)
    except InvalidTransition:  # somebody else was faster
        counts = False
    except InvalidData:
        if form is not None:  # a form of the project whose values no run can store
            raise
        raise ExpiredDelivery from None  # the event's form accepted it when the link was made
    page = EventPage(page.link, page.run)
    page.run.refresh_from_db()
    return render(request, "sequences/deliver.html", {"page": page, "is_done": counts})


def _json(find: Callable[[], Status]) -> HttpResponse:
    try:
        return JsonResponse(find().as_json())
    except StatusNotFound as error:
        content = {"error": error.code, "message": str(error.text)}
        return JsonResponse(content, status=error.http_status)
