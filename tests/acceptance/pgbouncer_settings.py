"""The settings of a project whose DATABASE_URL leads to PgBouncer in transaction mode."""

from tests.worker_settings import *  # noqa: F403
from tests.worker_settings import DATABASES, DRAMATIQ_BROKER

# A cursor of the server's belongs to a session, which there is none of.
DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = True
# Nor can a session listen.
if "schema" in DRAMATIQ_BROKER["OPTIONS"]:
    DRAMATIQ_BROKER["OPTIONS"]["listen"] = False
