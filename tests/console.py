"""Addresses, users and pages of the admin, and the command line: for tests that look into them."""

import re
from io import StringIO

from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

RUNS = reverse("admin:job_sequences_sequencerun_changelist")
STEPS = reverse("admin:job_sequences_steprun_changelist")
FAILURES = reverse("admin:job_sequences_sequencerun_failure_groups")


def url_of(run, page="change", *args):
    """A page of one run."""
    return reverse(f"admin:job_sequences_sequencerun_{page}", args=[run.pk, *args])


def step_url(row):
    return reverse("admin:job_sequences_steprun_change", args=[row.pk])


def content_of(client, address, headers=None, **query):
    response = client.get(address, query, headers=headers)
    assert response.status_code == 200, response.headers
    return response.content.decode()


def count_queries(client, address, query=None):
    with CaptureQueriesContext(connection) as queries:
        assert client.get(address, query).status_code == 200
    return len(queries)


def words(html):
    """The text of a page, its white space made one space."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def user_with(*codenames):
    """Somebody of the staff who may do this only."""
    user = User.objects.create_user("mia", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    assert user.user_permissions.count() == len(codenames)
    return user


def log_in(client, *codenames):
    """The same, logged in."""
    client.force_login(user_with(*codenames))
    return client


def command(*arguments, out=None, **options):
    """What ``manage.py sequences`` writes."""
    out = out or StringIO()
    call_command("sequences", *map(str, arguments), stdout=out, **options)
    return out.getvalue()
