from importlib import import_module

from django.apps import AppConfig

#: What the module `sequences` declares is found; these stand beside it.
MODULES = ("field_examples", "programs.crawler", "programs.loan", "programs.renditions")


class AcceptanceConfig(AppConfig):
    """What the acceptance tests' worker processes run. It has no migrations: only tests use it."""

    name = "tests.acceptance.app"
    label = "acceptance"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self):
        for module in MODULES:
            import_module(f"{self.name}.{module}")
