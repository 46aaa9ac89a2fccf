"""The app's configuration: what happens once Django is ready."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class SequencesConfig(AppConfig):
    """Durable job sequences."""

    name = "sequences"
    # Another package owns the label "sequences".
    label = "job_sequences"
    verbose_name = _("Sequences")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Find the sequences of every app, and bind their steps to the broker."""
        import logging

        import dramatiq

        from . import checks
        from .definitions import registry
        from .engine import actors, subjects
        from .engine.engine import DramatiqEngine
        from .port import set_engine
        from .utils import text
        from .worker import middleware

        logging.getLogger("sequences").addFilter(text.Printable())
        checks.register()
        middleware.install(dramatiq.get_broker())
        registry.autodiscover()
        actors.bind_all()
        set_engine(DramatiqEngine())
        subjects.connect()
        post_migrate.connect(_follow_migration, sender=self)


def _follow_migration(using: str, **_: Any) -> None:
    # Django also sends this after a flush, which deletes the rows of the plans.
    from .transitions import plans
    from .transitions.backends import backend_of

    plans.forget()
    backend_of(using).follow_migration(connections[using])
