"""Room in each page for the new versions of its rows: PostgreSQL then updates them in place."""

from django.db import migrations

_TABLES = ("job_sequences_sequencerun", "job_sequences_steprun")


def leave_room(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for table in _TABLES:
            schema_editor.execute(f"ALTER TABLE {table} SET (fillfactor = 70)")


def fill_up(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for table in _TABLES:
            schema_editor.execute(f"ALTER TABLE {table} RESET (fillfactor)")


class Migration(migrations.Migration):
    dependencies = [("job_sequences", "0001_initial")]

    operations = [migrations.RunPython(leave_room, fill_up)]
