"""The settings of `crashing`: everything that takes time is short, for a worker dies often."""

import os

from tests.worker_settings import *  # noqa: F403
from tests.worker_settings import DRAMATIQ_BROKER, DRAMATIQ_MIDDLEWARE

DRAMATIQ_MIDDLEWARE = [*DRAMATIQ_MIDDLEWARE, "dramatiq.middleware.CurrentMessage"]
DRAMATIQ_BROKER = {**DRAMATIQ_BROKER, "MIDDLEWARE": DRAMATIQ_MIDDLEWARE}

SEQUENCES = {
    "GRACE": 0.2,
    "LEASE": 0.4,
    "HEARTBEAT": 0.1,
    "SWEEP_INTERVAL": 0.05,
    # On a busy machine a worker may stall for longer than such a lease, again and again.
    "MAX_LOST_WORKERS": 1000,
}
if not os.environ.get("REDIS_URL") and os.environ.get("BROKER") != "postgres":
    # Dies with its process: a broker that loses every message.
    DRAMATIQ_BROKER = {
        "BROKER": "dramatiq.brokers.stub.StubBroker",
        "OPTIONS": {"fail_fast_default": False},
        "MIDDLEWARE": DRAMATIQ_MIDDLEWARE,
    }
