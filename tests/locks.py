"""Another session that holds what it has locked, until the test lets go."""

import threading
from contextlib import contextmanager

from django.db import connections, transaction


@contextmanager
def held(function, *, commits=False):
    """In this block another connection is in a transaction, after it has called ``function``."""
    locked, over, errors = threading.Event(), threading.Event(), []

    def hold():
        try:
            with transaction.atomic():
                function()
                locked.set()
                assert over.wait(60)
                transaction.set_rollback(not commits)
        except BaseException as error:
            errors.append(error)
        finally:
            locked.set()
            connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert locked.wait(60)
        assert not errors, errors
        yield
    finally:
        over.set()
        thread.join(60)
    assert not errors, errors
