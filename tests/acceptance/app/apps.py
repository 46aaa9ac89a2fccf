from django.apps import AppConfig


class AcceptanceConfig(AppConfig):
    """What the acceptance tests' worker processes run. It has no migrations: only tests use it."""

    name = "tests.acceptance.app"
    label = "acceptance"
    default_auto_field = "django.db.models.BigAutoField"
