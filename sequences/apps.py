"""The app's configuration: what happens when Django is ready."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
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

        from . import checks, sequence, signals, steerable
        from .definitions import registry
        from .engine import actors, handoff
        from .engine.operations import Steering
        from .engine.start import Starter
        from .transitions import notifications, runs
        from .utils import text
        from .worker import middleware

        logging.getLogger("sequences").addFilter(text.Printable())
        sequence.install(Starter())
        runs.when_a_child_ends(handoff.child_ended)
        notifications.listen(signals.Sender())
        steerable.install(Steering())
        checks.register()
        middleware.install(dramatiq.get_broker())
        registry.autodiscover()
        actors.bind_all()
        post_migrate.connect(_forget_plans, sender=self)


def _forget_plans(**_: Any) -> None:
    # Django sends this after a flush too: the plans' rows are gone.
    from .transitions import plans

    plans.forget()
