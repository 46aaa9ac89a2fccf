"""Threads that do something at the same time, each with a connection of its own."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from django.db import connections

from sequences.exceptions import InvalidTransition


class Crew:
    """Threads that keep their connections from round to round."""

    def __init__(self):
        self.pool, self.opened = ThreadPoolExecutor(64), set()

    def together(self, *functions):
        """Call all at the same time; what each returned or raised comes in their order."""
        barrier = threading.Barrier(len(functions))
        futures = [self.pool.submit(self.call, barrier, function) for function in functions]
        return [future.result(90) for future in futures]

    def call(self, barrier, function):
        connection = connections["default"]
        connection.ensure_connection()
        self.opened.add(connection)
        barrier.wait(60)
        try:
            return function()
        except BaseException as error:
            return error

    def dismiss(self):
        self.pool.shutdown()
        for connection in self.opened:
            connection.inc_thread_sharing()
            connection.close()


def soon(function, *arguments):
    """The same, a moment later: so that each side wins some of the rounds."""

    def call():
        time.sleep(random.uniform(0, 0.004))
        return function(*arguments)

    return call


def refused(outcome):
    """Whether the operation was refused; it must have been done otherwise."""
    if isinstance(outcome, InvalidTransition):
        return True
    assert outcome is None, repr(outcome)
    return False
