"""What a test has committed is deleted after it.

Django's own flush truncates every table, and writes all permissions anew. That takes longer than
most of the tests that need it, and there are thousands of them.
"""

from functools import cache

from django.core.management import call_command
from django.db import connections, transaction
from django.test import TransactionTestCase

from sequences.transitions import plans

#: What a migration has written belongs to the database, and not to a test.
WRITTEN_BY_MIGRATE = {"django_content_type", "auth_permission"}


def after_each_test(case: TransactionTestCase) -> None:
    """Instead of `TransactionTestCase._fixture_teardown`."""
    for using in case._databases_names(include_mirrors=False):
        delete_rows(using)
    plans.forget()  # their rows are gone


def delete_rows(using: str) -> None:
    """All rows of all tables, apart from those that came with the tables."""
    connection = connections[using]
    statements = [
        f"DELETE FROM {connection.ops.quote_name(table)}{condition}"
        for table, condition in deletable(using)
    ]
    with (
        transaction.atomic(using),
        connection.constraint_checks_disabled(),
        connection.cursor() as cursor,
    ):
        for statement in statements:
            cursor.execute(statement)


def truncate(using: str = "default") -> None:
    """Leave no dead rows either: for a test that looks at pages, or at what an index reads."""
    call_command("flush", verbosity=0, interactive=False, database=using)


@cache
def deletable(using: str) -> list[tuple[str, str]]:
    """The tables, and which of their rows; asked for the first time before any test has written."""
    connection = connections[using]
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    return [(table, newer(table, using)) for table in sorted(tables)]


def newer(table: str, using: str) -> str:
    """The condition for rows that tests have added to a table which holds others."""
    if table not in WRITTEN_BY_MIGRATE:
        return ""
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT coalesce(max(id), 0) FROM {table}")
        return f" WHERE id > {cursor.fetchone()[0]}"
