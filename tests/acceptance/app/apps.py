from importlib import import_module

from django.apps import AppConfig


class AcceptanceConfig(AppConfig):
    """What the acceptance tests' worker processes run. It has no migrations: only tests use it."""

    name = "tests.acceptance.app"
    label = "acceptance"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self):
        """What the module `sequences` declares is found; this stands beside it."""
        import_module("tests.acceptance.app.field_examples")
