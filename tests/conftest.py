import os
from contextlib import suppress
from pathlib import Path

import dramatiq
import psutil
import pytest
from django.db import connection, connections
from django.test import TransactionTestCase
from hypothesis import settings

from sequences.engine import current, dispatcher
from sequences.testing import isolate_sequences
from tests import flush
from tests.threads import Crew

# What failed once fails again, here and in CI; `--hypothesis-profile=default` looks for more.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

#: The folders of tests that start other processes.
REST = ("acceptance", "browser")


def pytest_addoption(parser):
    parser.addoption(
        "--database-only", action="store_true", help="leave out what touches no database"
    )
    parser.addoption(
        "--rest", action="store_true", help="only what takes long, or starts other processes"
    )
    parser.addoption(
        "--broker",
        choices=("redis", "amqp", "postgres"),
        default="redis",
        help="what workers use, where a test leaves that open",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("database_only"):
        keep(config, items, touches_database)
    if config.getoption("rest"):
        keep(config, items, is_of_the_rest)


def keep(config, items, wanted):
    config.hook.pytest_deselected(items=[one for one in items if not wanted(one)])
    items[:] = [one for one in items if wanted(one)]


def is_of_the_rest(item):
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return folder in REST or item.get_closest_marker("slow") is not None


def touches_database(item):
    """pytest-django and Django let no other test do that."""
    if item.get_closest_marker("django_db") or {"db", "transactional_db", "django_db_setup"} & {
        *item.fixturenames
    }:
        return True
    return issubclass(getattr(item, "cls", None) or object, TransactionTestCase)


def pytest_runtest_setup(item):
    for marker in item.iter_markers("only_on"):
        if connection.vendor not in marker.args:
            pytest.skip(f"only on {', '.join(marker.args)}: this database is {connection.vendor}")


@pytest.fixture(autouse=True)
def broker():
    """The broker of this process, empty before and after each test."""
    broker = dramatiq.get_broker()
    broker.flush_all()
    middleware = list(broker.middleware)
    yield broker
    # A worker leaves one that would start a consumer for each queue that a later test declares.
    broker.middleware[:] = middleware
    broker.flush_all()


@pytest.fixture
def caught():
    """What is dispatched, which no broker gets."""
    with dispatcher.capture_dispatches() as dispatches:
        yield dispatches


@pytest.fixture(autouse=True)
def _isolated():
    """What a test declares is gone after it: the next may use the same names."""
    with isolate_sequences():
        yield
    current.stopping.clear()  # a worker that a test has shut down is gone
    dispatcher._breaker = dispatcher._Breaker()  # a broker that a test has taken away is back


@pytest.fixture(autouse=True, scope="session")
def _quick_flush():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", flush.after_each_test)
        yield


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker):
    """As pytest-django has it; which rows came with the tables is known before any test."""
    with django_db_blocker.unblock():
        for using in connections:
            flush.deletable(using)


@pytest.fixture(autouse=True, scope="module")
def _no_process_is_left_behind():
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    names = [str(process) for process in left]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not names, f"processes left behind: {names}"


def service_url(variable):
    """The URL of a server that this run may use. Without it the test skips, in CI it fails."""
    url = os.environ.get(variable)
    if url:
        return url
    return missing(f"{variable} is not set: `make test` sets it")


def missing(reason):
    """What a test needs is not here: it skips, and in CI it fails."""
    return pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_url():
    return service_url("TEST_REDIS_URL")


@pytest.fixture(scope="session")
def amqp_url():
    return service_url("TEST_AMQP_URL")


@pytest.fixture(scope="session")
def postgres_url():
    """The broker in the tests' own database needs no other server."""
    return ""


@pytest.fixture
def together():
    """Calls functions at the same time; what each returned or raised comes in their order."""
    crew = Crew()
    yield crew.together
    crew.dismiss()
