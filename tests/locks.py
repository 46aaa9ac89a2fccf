"""Another session that holds what it has locked, until the test lets go."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

from django.db import connection, connections, transaction


@contextmanager
def held(function, *, commits=False):
    """In this block another connection is in a transaction, after it has called ``function``.

    Gives that session: ``pid`` is what the database calls it.
    """
    locked, over, errors = threading.Event(), threading.Event(), []
    session = SimpleNamespace(pid=None)

    def hold():
        try:
            with transaction.atomic():
                function()
                session.pid = own_pid()
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
        yield session
    finally:
        over.set()
        thread.join(60)
    assert not errors, errors


def own_pid():
    functions = {"postgresql": "pg_backend_pid()", "mysql": "CONNECTION_ID()"}
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {functions[connection.vendor]}")
        return cursor.fetchone()[0]
