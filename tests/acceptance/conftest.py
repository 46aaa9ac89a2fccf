import pytest

from .workers import SETTINGS, Crew


@pytest.fixture
def hire(request, tmp_path, transactional_db, settings):
    """Make a crew: `hire("redis")` or `hire("amqp")`, with other SEQUENCES if need be."""
    crews = []

    def make(kind, gateway=None, **changed):
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
def standing_crew(request, django_db_setup, tmp_path_factory, redis_url):
    """Two workers on Redis for all tests that leave them alive."""
    crew = request.module.standing = Crew("redis", redis_url, tmp_path_factory.mktemp("crew"))
    yield crew
    crew.dismiss()


@pytest.fixture
def crew(standing_crew, transactional_db, settings):
    settings.SEQUENCES = SETTINGS
    if not standing_crew.workers:
        standing_crew.start(2)
    with standing_crew:
        yield standing_crew
    standing_crew.show()
