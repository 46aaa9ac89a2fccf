import pytest

from .workers import SETTINGS, Crew


@pytest.fixture
def hire(request, tmp_path, transactional_db, settings):
    """Make a crew, with other SEQUENCES if need be: `hire()` on the broker that `--broker` names,
    `hire("redis")`, `hire("amqp")` or `hire("postgres")` on this one."""
    crews = []

    def make(kind=None, gateway=None, **changed):
        kind = kind or request.config.getoption("broker")
        # Workers of another broker would sweep this test's rows to it.
        standing = getattr(request.module, "standing", None)
        if standing:
            standing.dismiss()
        crew = Crew(kind, request.getfixturevalue(f"{kind}_url"), tmp_path, **changed)
        if gateway:
            crew.connect_to(gateway.url)
        # This process dispatches too, and by its own settings decides when that is overdue.
        settings.SEQUENCES = crew.settings
        crews.append(crew.__enter__())
        return crew

    yield make
    for crew in reversed(crews):
        crew.__exit__()
        crew.show()
        crew.dismiss()


@pytest.fixture(scope="module")
def standing_crew(request, django_db_setup, django_db_blocker, tmp_path_factory):
    """Two workers for all tests that leave them alive."""
    kind = request.config.getoption("broker")
    url = request.getfixturevalue(f"{kind}_url")
    with django_db_blocker.unblock():
        crew = request.module.standing = Crew(kind, url, tmp_path_factory.mktemp("crew"))
    yield crew
    with django_db_blocker.unblock():
        crew.dismiss()


@pytest.fixture
def crew(standing_crew, transactional_db, settings):
    settings.SEQUENCES = SETTINGS
    if not standing_crew.workers:
        standing_crew.start(2)
    with standing_crew:
        yield standing_crew
    standing_crew.show()
