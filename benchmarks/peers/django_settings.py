"""The settings of the peers that are Django apps; PEERS_APPS names them."""

import os

from common import NAMESPACE, REDIS_URL, databases

SECRET_KEY = "only for a benchmark"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    *filter(None, os.environ.get("PEERS_APPS", "").split(",")),
]
DATABASES = databases()
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# As the README of this project has it; the floor runs with the same.
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.redis.RedisBroker",
    "OPTIONS": {"url": REDIS_URL, "namespace": NAMESPACE},
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.ShutdownNotifications",
        "dramatiq.middleware.Callbacks",
        "dramatiq.middleware.Retries",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
    ],
}
Q_CLUSTER = {
    "name": NAMESPACE,
    "redis": REDIS_URL,
    "workers": int(os.environ.get("PEERS_WORKERS", "8")),
    "timeout": 60,
    "retry": 120,
    "save_limit": 0,  # keeps every result
    "log_level": "WARNING",
}
