"""Use the installed package as a project of its own would: migrate, declare, run."""

from importlib.resources import files

import django
from django.conf import settings
from django.core.management import call_command
from django.utils import translation

settings.configure(
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django_dramatiq",
        "sequences",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DRAMATIQ_BROKER={
        "BROKER": "dramatiq.brokers.stub.StubBroker",
        "OPTIONS": {},
        "MIDDLEWARE": ["dramatiq.middleware.Retries"],
    },
    USE_TZ=True,
)
django.setup()
call_command("migrate", verbosity=0)

import sequences  # noqa: E402
from sequences import Sequence, define, job, step, testing  # noqa: E402


class Sum(Sequence):
    class Meta:
        app_label = "auth"

    @step
    def add(self):
        self.data["sum"] = sum(self.data["numbers"])


run = testing.run_sequence(Sum, numbers=[1, 2, 3]).run
run.refresh_from_db()
assert (run.status, run.data["sum"]) == ("succeeded", 6), (run.status, run.data)


@job("double")  # without annotations: pydantic, which would validate them, is not installed here
def double(number):
    return 2 * number


Double = define({"steps": {"double": {"job": "double", "save": "number"}}}, name="auth.Double")
assert testing.run_sequence(Double, number=4).data == {"number": 8}

catalogues = [f"locale/{language}/LC_MESSAGES/django.mo" for language in ("de", "es", "fr")]
for name in ("py.typed", "flows/definition.schema.json", *catalogues):
    assert (files(sequences) / name).is_file(), name
with translation.override("de"):
    assert run.get_status_display() == "erfolgreich", run.get_status_display()
print(f"It works: {sequences.__file__}")
