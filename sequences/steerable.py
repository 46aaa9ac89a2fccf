"""What can be asked of a run: the methods of its model. What they do is installed later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from asgiref.sync import sync_to_async

from .exceptions import SequenceError

if TYPE_CHECKING:
    from .definitions.steps import Step
    from .models import SequenceRun

    Named: TypeAlias = Step[Any] | str


class Steering(Protocol):
    """What performs the acts; installed when Django is ready."""

    def act(self, run: SequenceRun, action: str, *, by: Any, reason: str) -> None: ...
    def act_on_step(
        self, run: SequenceRun, action: str, step: Named, *, by: Any, reason: str, **options: Any
    ) -> None: ...
    def edit(self, run: SequenceRun, data: dict[str, Any], *, by: Any, reason: str) -> None: ...
    def deliver(
        self, run: SequenceRun, event: Named, payload: Any, *, by: Any, reason: str
    ) -> bool: ...
    def payload(self, run: SequenceRun, event: Named, default: Any) -> Any: ...


_steering: Steering | None = None


def install(steering: Steering) -> None:
    """Let runs be steered; called once Django is ready."""
    global _steering
    _steering = steering


def _installed() -> Steering:
    if _steering is None:
        raise SequenceError(
            "Runs cannot be steered before Django is ready: call this later than at import."
        )
    return _steering


#: What no payload is: None may be delivered.
_NOTHING = object()


class Steerable:
    """The acts on a run, and what was delivered to it.

    Each act takes ``by`` (who: a user or a text) and ``reason``, leaves an `Operation` row, is safe
    against steps that run at the same time, updates this instance, and raises `InvalidTransition`
    in a state that does not allow it. Messages are sent when the caller's transaction commits.
    """

    def pause(self, *, by: Any = "", reason: str = "") -> None:
        """Hold what has not begun. A running step may commit; times go on."""
        _installed().act(self._run(), "pause", by=by, reason=reason)

    def resume(self, *, by: Any = "", reason: str = "") -> None:
        """Let go what a pause holds; what fell due meanwhile is dispatched now."""
        _installed().act(self._run(), "resume", by=by, reason=reason)

    def cancel(self, *, undo: bool = False, by: Any = "", reason: str = "") -> None:
        """End the run as cancelled. A step that runs just now loses its commit.

        With ``undo`` that step ends first, and is not tried again; then the undos of what the run
        and its children have done run, newest first.
        """
        action = "cancel_and_undo" if undo else "cancel"
        _installed().act(self._run(), action, by=by, reason=reason)

    def finish(self, *, by: Any = "", reason: str = "") -> None:
        """End the run as succeeded; what has not ended is skipped."""
        _installed().act(self._run(), "finish", by=by, reason=reason)

    def retry(self, *, by: Any = "", reason: str = "") -> None:
        """Begin the failed steps again, and retry now what waits for its next attempt.

        Of a run that was undone: the undos and the `on_failure` that have failed.
        """
        _installed().act(self._run(), "retry", by=by, reason=reason)

    def skip(self, step: Named, *, reason: str = "", by: Any = "") -> None:
        """Go on without this step, which has failed, waits, or is queued; or without a failed undo.

        Raises `UnknownStep` if the run's plan has no such step.
        """
        _installed().act_on_step(self._run(), "skip", step, by=by, reason=reason)

    def restart_from(
        self, step: Named, *, keep_deliveries: bool = False, by: Any = "", reason: str = ""
    ) -> None:
        """Perform this step again, and all that come after it. ``data`` stays as it is.

        The events among them ask again: what was delivered for them is forgotten, unless
        ``keep_deliveries``.
        """
        _installed().act_on_step(
            self._run(), "restart_from", step, by=by, reason=reason, keep_deliveries=keep_deliveries
        )

    def run_now(self, step: Named, *, by: Any = "", reason: str = "") -> None:
        """Let this step wait no longer for its time: a delay, a repeat, its next attempt.

        Of a fan-out that concerns every item that waits so. A step whose start was delayed has
        its own `delay` still before it, counted from now. Raises `UnknownStep` if the run's plan
        has no such step, and `InvalidTransition` if nothing of it waits for a time: a wait for
        an event, for items or for children is ended by those.
        """
        _installed().act_on_step(self._run(), "run_now", step, by=by, reason=reason)

    def deliver(self, event: Named, payload: Any = None, *, by: Any = "", reason: str = "") -> bool:
        """End the wait of an event with this payload; one that comes early is kept.

        The first delivery counts: returns whether this one did. Raises `InvalidData` for a
        payload that is not JSON, `UnknownStep` for a step that is no event of the run's plan, and
        `InvalidTransition` if nothing can be delivered any more: its wait was skipped or timed
        out, or the run has ended.
        """
        return _installed().deliver(self._run(), event, payload, by=by, reason=reason)

    def delivered(self, event: Named) -> bool:
        """Whether something was delivered for this event: true once `deliver` has returned.

        Read from the database: however old this instance is. Raises `UnknownStep` for a step that
        is no event of the run's plan.
        """
        return _installed().payload(self._run(), event, _NOTHING) is not _NOTHING

    def payload(self, event: Named, default: Any = None) -> Any:
        """What was delivered for this event; ``default`` if nothing was. Else as `delivered`."""
        return _installed().payload(self._run(), event, default)

    def edit(self, data: dict[str, Any], *, by: Any = "", reason: str = "") -> None:
        """Put other data in the place of the run's.

        Refused while a step is running, and if the run has changed since this instance was read.
        Raises `InvalidData` for what cannot be stored.
        """
        _installed().edit(self._run(), data, by=by, reason=reason)

    def erase(self, *, keep_key: bool = False, by: Any = "", reason: str = "") -> None:
        """Blank what a finished run has stored of its data, for good: of its children, too.

        That is data, deliveries, payloads, results, the texts of failures, the reasons of what was
        done to it before, and its key, which is free again then, unless ``keep_key``. Refused
        while a run below it has not ended.
        """
        action = "erase_but_key" if keep_key else "erase"
        _installed().act(self._run(), action, by=by, reason=reason)

    async def apause(self, *, by: Any = "", reason: str = "") -> None:
        """`pause`, for asynchronous code."""
        await sync_to_async(self.pause)(by=by, reason=reason)

    async def aresume(self, *, by: Any = "", reason: str = "") -> None:
        """`resume`, for asynchronous code."""
        await sync_to_async(self.resume)(by=by, reason=reason)

    async def acancel(self, *, undo: bool = False, by: Any = "", reason: str = "") -> None:
        """`cancel`, for asynchronous code."""
        await sync_to_async(self.cancel)(undo=undo, by=by, reason=reason)

    async def afinish(self, *, by: Any = "", reason: str = "") -> None:
        """`finish`, for asynchronous code."""
        await sync_to_async(self.finish)(by=by, reason=reason)

    async def aretry(self, *, by: Any = "", reason: str = "") -> None:
        """`retry`, for asynchronous code."""
        await sync_to_async(self.retry)(by=by, reason=reason)

    async def askip(self, step: Named, *, reason: str = "", by: Any = "") -> None:
        """`skip`, for asynchronous code."""
        await sync_to_async(self.skip)(step, reason=reason, by=by)

    async def arestart_from(
        self, step: Named, *, keep_deliveries: bool = False, by: Any = "", reason: str = ""
    ) -> None:
        """`restart_from`, for asynchronous code."""
        await sync_to_async(self.restart_from)(
            step, keep_deliveries=keep_deliveries, by=by, reason=reason
        )

    async def arun_now(self, step: Named, *, by: Any = "", reason: str = "") -> None:
        """`run_now`, for asynchronous code."""
        await sync_to_async(self.run_now)(step, by=by, reason=reason)

    async def adeliver(
        self, event: Named, payload: Any = None, *, by: Any = "", reason: str = ""
    ) -> bool:
        """`deliver`, for asynchronous code."""
        return await sync_to_async(self.deliver)(event, payload, by=by, reason=reason)

    async def adelivered(self, event: Named) -> bool:
        """`delivered`, for asynchronous code."""
        return await sync_to_async(self.delivered)(event)

    async def apayload(self, event: Named, default: Any = None) -> Any:
        """`payload`, for asynchronous code."""
        return await sync_to_async(self.payload)(event, default)

    async def aedit(self, data: dict[str, Any], *, by: Any = "", reason: str = "") -> None:
        """`edit`, for asynchronous code."""
        await sync_to_async(self.edit)(data, by=by, reason=reason)

    async def aerase(self, *, keep_key: bool = False, by: Any = "", reason: str = "") -> None:
        """`erase`, for asynchronous code."""
        await sync_to_async(self.erase)(keep_key=keep_key, by=by, reason=reason)

    def _run(self) -> SequenceRun:
        return self  # type: ignore[return-value]
