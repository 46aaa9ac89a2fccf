from django.apps import AppConfig


class TestsConfig(AppConfig):
    name = "tests"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self):
        from sequences.transitions import backends
        from tests.portable import Portable, is_portable

        if is_portable():
            backends.BACKENDS["postgresql"] = Portable()
