"""OpenTelemetry: one trace per run, from its start through its attempts in all workers.

The start's span is the parent of every attempt's span; the start of a child run is a child of the
attempt that started it. Imported only if tracing is on.

The project's own samplers and processors run in here. Their errors are logged: they must not fail a
start, or a step that has committed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from dramatiq.middleware import Shutdown, SkipMessage
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..definitions.kinds import traits_of
from ..definitions.plan import Plan
from ..transitions.failures import Failure
from ..transitions.types import Change, Claim, Repeat, Start
from . import current
from .current import CurrentAttempt

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("sequences")

_tracer = trace.get_tracer("sequences")
#: The W3C's format is stored, whatever propagators the project uses.
_w3c = TraceContextTextMapPropagator()
_SPAN_IDS = 2**64
_NO_SPAN: Span = trace.INVALID_SPAN


def _safely(otherwise: T, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return act(*args, **kwargs)
    except Exception:
        logger.exception("OpenTelemetry failed; a span may be missing.")
        return otherwise


@contextmanager
def starting(plan: Plan, requests: Sequence[Start]) -> Iterator[None]:
    """A span for each run that is started, in this thread's current context."""
    spans = [_safely(_NO_SPAN, _start_of, plan, request) for request in requests]
    try:
        yield
    except BaseException as error:
        for span in spans:
            _safely(None, _not_started, span, error)
        raise
    finally:
        for request, span in zip(requests, spans, strict=True):
            _safely(None, _end_start, request, span)


def _not_started(span: Span, error: BaseException) -> None:
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(StatusCode.ERROR, "The run was not started.")


def _end_start(request: Start, span: Span) -> None:
    if request.existing is not None:
        span.set_attributes({"sequences.run": str(request.existing), "sequences.created": False})
    span.end()


def _start_of(plan: Plan, request: Start) -> Span:
    attributes = {
        "sequences.sequence": plan.sequence,
        "sequences.run": str(request.id),
        **_messaging("send", plan.roots[0].queue),
    }
    span = _tracer.start_span(
        f"start {plan.sequence}", kind=SpanKind.PRODUCER, attributes=attributes
    )
    carrier: dict[str, str] = {}
    _w3c.inject(carrier, trace.set_span_in_context(span))
    request.traceparent = carrier.get("traceparent", "")
    return span


@contextmanager
def attempt(current_attempt: CurrentAttempt) -> Iterator[None]:
    """The span of an attempt, which is the current span while the step runs."""
    span = _safely(_NO_SPAN, _attempt_of, current_attempt.claim)
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as error:
        _safely(None, _tell, span, error, current_attempt)
        raise
    else:
        _safely(None, span.set_attribute, "sequences.outcome", _outcome(current_attempt.change))
    finally:
        _safely(None, span.end)


def _attempt_of(claim: Claim) -> Span:
    return _tracer.start_span(
        f"{claim.sequence}.{claim.step}",
        context=_parent(claim),
        kind=SpanKind.CONSUMER,
        attributes=_attributes(claim),
    )


def _parent(claim: Claim) -> Context:
    context = _w3c.extract({"traceparent": claim.traceparent}, Context())
    if trace.get_current_span(context).get_span_context().is_valid:
        return context
    # The start was not traced: all attempts share a trace whose id is the run's.
    number = claim.run_id.int
    sampled = TraceFlags(TraceFlags.SAMPLED)
    root = SpanContext(number, number % _SPAN_IDS, is_remote=True, trace_flags=sampled)
    return trace.set_span_in_context(NonRecordingSpan(root), Context())


def _attributes(claim: Claim) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "sequences.sequence": claim.sequence,
        "sequences.run": str(claim.run_id),
        "sequences.step": claim.step,
        "sequences.attempt": claim.attempts + 1,
    }
    if traits_of(claim.kind).is_item:
        attributes["sequences.item"] = claim.item
    if (delivery := current.delivery()) is not None:
        message = delivery.message
        attributes |= _messaging("process", message.queue_name)
        attributes["messaging.message.id"] = message.message_id
    return attributes


def _messaging(operation: str, queue: str) -> dict[str, str]:
    """According to OpenTelemetry's semantic conventions for messaging."""
    return {
        "messaging.system": "dramatiq",
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
    }


def _tell(span: Span, error: BaseException, current_attempt: CurrentAttempt) -> None:
    if isinstance(error, Shutdown):
        span.set_attribute("sequences.outcome", "interrupted")
    elif isinstance(error, SkipMessage):
        span.set_attribute("sequences.outcome", "lost")
        span.set_status(StatusCode.ERROR, str(error))
    else:
        span.set_attribute("sequences.outcome", "failed")
        _record(span, current_attempt.redacted(Failure.of(error)).cut())


def _record(span: Span, failure: Failure) -> None:
    details = {
        "exception.type": failure.error,
        "exception.message": failure.message,
        "exception.stacktrace": failure.traceback,
    }
    span.add_event("exception", details)
    span.set_attribute("error.type", failure.error)
    span.set_status(StatusCode.ERROR, f"{failure.error}: {failure.message}")


def _outcome(change: Change | None) -> str:
    if change is None:
        return "succeeded"
    if isinstance(change.conclusion, Repeat):
        return "repeats"
    status = change.conclusion.status
    return "waits" if status == "waiting" else status
