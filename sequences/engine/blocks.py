"""The transaction around a step."""

from __future__ import annotations

from typing import Any, Self

from django.db import connections, transaction

from ..transitions.backends import backend_of


class StepBlock(transaction.Atomic):
    """`transaction.atomic()` that costs almost nothing to leave if no statement was sent inside."""

    def __init__(self, using: str) -> None:
        super().__init__(using, savepoint=True, durable=False)
        self._using = using

    def __enter__(self) -> Self:  # type: ignore[override]  # Atomic gives nothing
        super().__enter__()
        return self

    def is_untouched(self) -> bool:
        """Whether the step has sent no statement and left nothing for the commit.

        If so, its commit, a single statement, needs neither BEGIN nor COMMIT.
        """
        return _is_untouched(connections[self._using], self._using)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        connection: Any = connections[self._using]
        if kind is None and _is_untouched(connection, self._using):
            # As Django does, but without a COMMIT, which would have nothing to commit. This is the
            # outermost block: inside another one, or without autocommit, a SAVEPOINT would have
            # been sent.
            connection.atomic_blocks.pop()
            connection.in_atomic_block = False
            connection.set_autocommit(True)
        else:
            super().__exit__(kind, error, traceback)


def _is_untouched(connection: Any, using: str) -> bool:
    if connection.run_on_commit or connection.needs_rollback:
        return False
    return backend_of(using).is_idle(connection)
