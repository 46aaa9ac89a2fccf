"""A project that uses the app, with the servers that the environment names: DATABASE_URL, and
REDIS_URL or AMQP_URL; with BROKER=postgres, the database is the broker, too."""

import os
from pathlib import Path

import django

from testproject import databases

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = "not a secret: this project is a demonstration"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"
ASGI_APPLICATION = "testproject.asgi.application"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_dramatiq",
    "sequences",
    "testproject.contact",
    "testproject.orders",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "testproject" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": databases.from_url(
        os.environ.get("DATABASE_URL") or f"sqlite:///{BASE_DIR / 'db.sqlite3'}"
    )
}
if DATABASES["default"]["ENGINE"].endswith("mysql"):
    import pymysql

    pymysql.install_as_MySQLdb()

DRAMATIQ_MIDDLEWARE = [
    "dramatiq.middleware.AgeLimit",
    "dramatiq.middleware.TimeLimit",
    "dramatiq.middleware.ShutdownNotifications",
    "dramatiq.middleware.Callbacks",
    "dramatiq.middleware.Retries",
    "django_dramatiq.middleware.DbConnectionsMiddleware",
]
if os.environ.get("BROKER") == "postgres":
    DRAMATIQ_BROKER = {
        "BROKER": "sequences.brokers.PostgresBroker",
        "OPTIONS": {"schema": os.environ.get("BROKER_SCHEMA") or "dramatiq"},
        "MIDDLEWARE": DRAMATIQ_MIDDLEWARE,
    }
elif os.environ.get("AMQP_URL"):
    DRAMATIQ_BROKER = {
        "BROKER": "dramatiq.brokers.rabbitmq.RabbitmqBroker",
        # Without confirm_delivery, publishing a message that the server never accepted looks
        # successful.
        "OPTIONS": {"url": os.environ["AMQP_URL"], "confirm_delivery": True},
        "MIDDLEWARE": DRAMATIQ_MIDDLEWARE,
    }
else:
    DRAMATIQ_BROKER = {
        "BROKER": "dramatiq.brokers.redis.RedisBroker",
        "OPTIONS": {
            "url": databases.with_timeouts(os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379"),
            "namespace": os.environ.get("REDIS_NAMESPACE") or "dramatiq",
        },
        "MIDDLEWARE": DRAMATIQ_MIDDLEWARE,
    }

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"

MAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
MAIL_PATH = os.environ.get("EMAIL_DIR") or BASE_DIR / ".demo" / "mail"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": MAIL_BACKEND, "OPTIONS": {"file_path": MAIL_PATH}}}
else:
    EMAIL_BACKEND, EMAIL_FILE_PATH = MAIL_BACKEND, MAIL_PATH
DEFAULT_FROM_EMAIL = "hello@example.com"
# How often the contact form's last step fails before it succeeds, so that the demo shows retries.
CONTACT_MAIL_FAILURES = 2
# How long it takes to pack an item, so that the demo shows items being packed side by side.
ORDERS_PACKING_SECONDS = 0.5
