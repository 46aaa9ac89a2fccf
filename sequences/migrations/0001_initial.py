"""The tables of the first release."""

import django.db.models.deletion
from django.db import migrations, models

import sequences.models
import sequences.utils.uuid7

#: Their rows are updated often.
_BUSY_TABLES = ("job_sequences_sequencerun", "job_sequences_steprun")


def leave_room(apps, schema_editor):
    """Leave free space in each page, so that PostgreSQL can update rows in place."""
    if schema_editor.connection.vendor == "postgresql":
        for table in _BUSY_TABLES:
            schema_editor.execute(f"ALTER TABLE {table} SET (fillfactor = 70)")


def fill_up(apps, schema_editor):
    """Reverse `leave_room`."""
    if schema_editor.connection.vendor == "postgresql":
        for table in _BUSY_TABLES:
            schema_editor.execute(f"ALTER TABLE {table} RESET (fillfactor)")


def index_failures(apps, schema_editor):
    """Create an index of the step runs that have failed before.

    Only of those, if the database has partial indexes: steps that never fail cost nothing, and
    PostgreSQL can still update their rows in place. Declared on the model, it would cause a warning
    on databases without partial indexes.
    """
    is_partial = schema_editor.connection.features.supports_partial_indexes
    condition = " WHERE attempts > 0" if is_partial else ""
    schema_editor.execute(
        f"CREATE INDEX job_sequences_step_run_attempts ON job_sequences_steprun (attempts){condition}"
    )


def drop_index(apps, schema_editor):
    """Reverse `index_failures`: the index goes with its table."""


_RUNS, _STEPS = _BUSY_TABLES
#: Indexes of what most rows lack: their name, and where they are.
_SPARSE = {
    "job_sequences_run_key": (_RUNS, "(key, sequence)", "key"),
    "job_sequences_run_parent": (_RUNS, "(parent_id)", "parent_id"),
    "job_sequences_step_wake": (_STEPS, "(wake_at)", "wake_at"),
}
_KEY_ONCE, _KEY = "job_sequences_run_key_once", "(key_scope, active_key)"


def leave_out(apps, schema_editor):
    """Exclude rows without a value from these indexes on PostgreSQL.

    MariaDB and MySQL have no partial indexes, so the models do not declare them. A later migration
    that changes one of these indexes must do so in SQL on PostgreSQL, too.
    """
    if schema_editor.connection.vendor != "postgresql":
        return
    for name, (table, columns, column) in _SPARSE.items():
        schema_editor.execute(f"DROP INDEX {name}")
        where = f"WHERE {column} IS NOT NULL"
        schema_editor.execute(f"CREATE INDEX {name} ON {table} {columns} {where}")
    schema_editor.execute(f"ALTER TABLE {_RUNS} DROP CONSTRAINT {_KEY_ONCE}")
    where = "WHERE active_key IS NOT NULL"
    schema_editor.execute(f"CREATE UNIQUE INDEX {_KEY_ONCE} ON {_RUNS} {_KEY} {where}")


def take_in(apps, schema_editor):
    """Reverse `leave_out`."""
    if schema_editor.connection.vendor != "postgresql":
        return
    for name, (table, columns, _) in _SPARSE.items():
        schema_editor.execute(f"DROP INDEX {name}")
        schema_editor.execute(f"CREATE INDEX {name} ON {table} {columns}")
    schema_editor.execute(f"DROP INDEX {_KEY_ONCE}")
    schema_editor.execute(f"ALTER TABLE {_RUNS} ADD CONSTRAINT {_KEY_ONCE} UNIQUE {_KEY}")


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="SequenceRun",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=sequences.utils.uuid7.uuid7,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "sequence",
                    sequences.models.ExactCharField(max_length=200, verbose_name="sequence"),
                ),
                (
                    "key",
                    sequences.models.ExactCharField(
                        blank=True, max_length=255, null=True, verbose_name="key"
                    ),
                ),
                (
                    "active_key",
                    sequences.models.ExactCharField(
                        blank=True, editable=False, max_length=255, null=True
                    ),
                ),
                (
                    "key_scope",
                    sequences.models.ExactCharField(
                        blank=True, db_default="", default="", editable=False, max_length=200
                    ),
                ),
                ("releases_key", models.BooleanField(default=False, editable=False)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("running", "running"),
                            ("paused", "paused"),
                            ("undoing", "undoing"),
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                            ("cancelled", "cancelled"),
                        ],
                        default="running",
                        max_length=16,
                        verbose_name="status",
                    ),
                ),
                ("final_status", models.CharField(blank=True, editable=False, max_length=16)),
                (
                    "data",
                    models.JSONField(
                        default=dict, encoder=sequences.models.JSONEncoder, verbose_name="data"
                    ),
                ),
                ("version", models.BigIntegerField(default=0, verbose_name="version")),
                (
                    "inbox",
                    models.JSONField(
                        default=dict, encoder=sequences.models.JSONEncoder, verbose_name="inbox"
                    ),
                ),
                ("created_at", models.DateTimeField(verbose_name="created")),
                ("updated_at", models.DateTimeField(verbose_name="updated")),
                (
                    "finished_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="finished"),
                ),
                (
                    "priority",
                    models.SmallIntegerField(db_default=0, default=0, verbose_name="priority"),
                ),
                (
                    "traceparent",
                    models.CharField(
                        blank=True, db_default="", default="", editable=False, max_length=55
                    ),
                ),
            ],
            options={
                "verbose_name": "run",
                "verbose_name_plural": "runs",
                "permissions": [
                    ("retry_sequencerun", "Can retry runs"),
                    ("restart_sequencerun", "Can restart runs from a step"),
                    ("skip_sequencerun", "Can skip steps of runs"),
                    ("pause_sequencerun", "Can pause and resume runs"),
                    ("cancel_sequencerun", "Can cancel runs"),
                    ("finish_sequencerun", "Can mark runs as succeeded"),
                    ("set_deadline_sequencerun", "Can set the deadlines of runs"),
                    ("deliver_sequencerun", "Can deliver events to runs"),
                    ("edit_sequencerun", "Can edit the data of runs"),
                    ("run_now_sequencerun", "Can run delayed steps now"),
                    ("erase_sequencerun", "Can erase the data of runs"),
                ],
            },
        ),
        migrations.CreateModel(
            name="WorkerProcess",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "name",
                    sequences.models.ExactCharField(
                        max_length=100, unique=True, verbose_name="name"
                    ),
                ),
                ("queues", models.JSONField(default=list, verbose_name="queues")),
                ("threads", models.PositiveIntegerField(default=0, verbose_name="threads")),
                (
                    "dead_threads",
                    models.PositiveIntegerField(default=0, verbose_name="dead threads"),
                ),
                ("started_at", models.DateTimeField(verbose_name="started")),
                ("seen_at", models.DateTimeField(db_index=True, verbose_name="last seen")),
                (
                    "swept_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="last sweep"),
                ),
                (
                    "stopped_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="stopped"),
                ),
                ("unextended_claims", models.JSONField(default=list, editable=False)),
            ],
            options={
                "verbose_name": "worker process",
                "verbose_name_plural": "worker processes",
            },
        ),
        migrations.CreateModel(
            name="Operation",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("action", models.CharField(max_length=32, verbose_name="action")),
                ("step", models.CharField(blank=True, max_length=100, verbose_name="step")),
                ("reason", models.TextField(blank=True, verbose_name="reason")),
                ("by", models.CharField(blank=True, max_length=150, verbose_name="by")),
                (
                    "before",
                    models.JSONField(
                        blank=True,
                        encoder=sequences.models.JSONEncoder,
                        null=True,
                        verbose_name="before",
                    ),
                ),
                (
                    "after",
                    models.JSONField(
                        blank=True,
                        encoder=sequences.models.JSONEncoder,
                        null=True,
                        verbose_name="after",
                    ),
                ),
                ("done_at", models.DateTimeField(verbose_name="done")),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="operations",
                        to="job_sequences.sequencerun",
                        verbose_name="run",
                    ),
                ),
            ],
            options={
                "verbose_name": "operation",
                "verbose_name_plural": "operations",
                "ordering": ["id"],
            },
        ),
        migrations.CreateModel(
            name="StepRun",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("step", sequences.models.ExactCharField(max_length=100, verbose_name="step")),
                ("item", models.IntegerField(default=-1, verbose_name="item")),
                ("kind", models.CharField(default="step", max_length=16, verbose_name="kind")),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("waiting", "waiting"),
                            ("queued", "queued"),
                            ("running", "running"),
                            ("retrying", "retrying"),
                            ("succeeded", "succeeded"),
                            ("failed", "failed"),
                            ("skipped", "skipped"),
                            ("cancelled", "cancelled"),
                        ],
                        default="queued",
                        max_length=16,
                        verbose_name="status",
                    ),
                ),
                ("attempts", models.IntegerField(default=0, verbose_name="failed attempts")),
                (
                    "lost_workers",
                    models.SmallIntegerField(default=0, verbose_name="lost workers in a row"),
                ),
                ("repeats", models.IntegerField(default=0, verbose_name="repeats")),
                ("dispatches", models.SmallIntegerField(default=0, editable=False)),
                ("delay_evaluated", models.BooleanField(default=False, editable=False)),
                (
                    "wait",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("time", "its time"),
                            ("event", "an event"),
                            ("items", "its items"),
                            ("children", "its child runs"),
                            ("place", "its turn among the items"),
                            ("undo", "the rollback"),
                            ("limit", "a limit"),
                        ],
                        db_default="",
                        default="",
                        max_length=16,
                        verbose_name="waits for",
                    ),
                ),
                (
                    "waiting_since",
                    models.DateTimeField(blank=True, null=True, verbose_name="waiting since"),
                ),
                ("members", models.JSONField(blank=True, editable=False, null=True)),
                (
                    "children_undo",
                    models.CharField(
                        blank=True, db_default="", default="", editable=False, max_length=8
                    ),
                ),
                ("token", models.BigIntegerField(blank=True, editable=False, null=True)),
                ("worker", models.CharField(blank=True, max_length=100, verbose_name="worker")),
                (
                    "progress",
                    models.JSONField(
                        blank=True,
                        encoder=sequences.models.JSONEncoder,
                        null=True,
                        verbose_name="progress",
                    ),
                ),
                (
                    "payload",
                    models.JSONField(
                        blank=True,
                        encoder=sequences.models.JSONEncoder,
                        null=True,
                        verbose_name="payload",
                    ),
                ),
                (
                    "result",
                    models.JSONField(
                        blank=True,
                        encoder=sequences.models.JSONEncoder,
                        null=True,
                        verbose_name="result",
                    ),
                ),
                ("ready_at", models.DateTimeField(verbose_name="ready")),
                ("queued_at", models.DateTimeField(verbose_name="queued")),
                ("started_at", models.DateTimeField(blank=True, null=True, verbose_name="started")),
                (
                    "finished_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="finished"),
                ),
                ("due_at", models.DateTimeField(blank=True, null=True, verbose_name="due")),
                (
                    "wake_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="wake-up"),
                ),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="steps",
                        to="job_sequences.sequencerun",
                        verbose_name="run",
                    ),
                ),
            ],
            options={
                "verbose_name": "step run",
                "verbose_name_plural": "step runs",
            },
        ),
        migrations.CreateModel(
            name="RunDeadline",
            fields=[
                (
                    "run",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="deadline",
                        serialize=False,
                        to="job_sequences.sequencerun",
                        verbose_name="run",
                    ),
                ),
                ("due_at", models.DateTimeField(db_index=True, verbose_name="deadline")),
            ],
            options={
                "verbose_name": "deadline",
                "verbose_name_plural": "deadlines",
            },
        ),
        migrations.CreateModel(
            name="OutboxMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("actor", models.CharField(max_length=255, verbose_name="actor")),
                ("queue", models.CharField(max_length=255, verbose_name="queue")),
                ("message", models.TextField(verbose_name="message")),
                ("created_at", models.DateTimeField(verbose_name="created")),
                ("wake_at", models.DateTimeField(db_index=True)),
                ("failures", models.PositiveIntegerField(default=0, verbose_name="failures")),
            ],
            options={
                "verbose_name": "outbox message",
                "verbose_name_plural": "outbox messages",
                "ordering": ["id"],
            },
        ),
        migrations.CreateModel(
            name="RunSubject",
            fields=[
                (
                    "run",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="subject_row",
                        serialize=False,
                        to="job_sequences.sequencerun",
                        verbose_name="run",
                    ),
                ),
                ("model", sequences.models.ExactCharField(max_length=200, verbose_name="model")),
                (
                    "object_id",
                    sequences.models.ExactCharField(max_length=255, verbose_name="object ID"),
                ),
                (
                    "erase_at",
                    models.DateTimeField(blank=True, db_index=True, editable=False, null=True),
                ),
            ],
            options={
                "verbose_name": "subject",
                "verbose_name_plural": "subjects",
                "indexes": [
                    models.Index(fields=["model", "object_id"], name="job_sequences_run_subject"),
                ],
            },
        ),
        migrations.CreateModel(
            name="StepCall",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", sequences.models.ExactCharField(max_length=100, verbose_name="name")),
                (
                    "result",
                    models.JSONField(
                        encoder=sequences.models.JSONEncoder, null=True, verbose_name="result"
                    ),
                ),
                ("called_at", models.DateTimeField(verbose_name="called")),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="calls",
                        to="job_sequences.sequencerun",
                        verbose_name="run",
                    ),
                ),
                (
                    "step_run",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="calls",
                        to="job_sequences.steprun",
                        verbose_name="step run",
                    ),
                ),
            ],
            options={
                "verbose_name": "durable call",
                "verbose_name_plural": "durable calls",
                "ordering": ["id"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("step_run", "name"), name="job_sequences_step_call_once"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="StepLoss",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("step", sequences.models.ExactCharField(max_length=100, verbose_name="step")),
                ("item", models.IntegerField(default=-1, verbose_name="item")),
                ("worker", models.CharField(max_length=100, verbose_name="worker")),
                (
                    "concurrent_steps",
                    models.JSONField(default=list, verbose_name="concurrent steps"),
                ),
                ("lost_at", models.DateTimeField(db_index=True, verbose_name="lost")),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="losses",
                        to="job_sequences.sequencerun",
                        verbose_name="run",
                    ),
                ),
                (
                    "step_run",
                    models.ForeignKey(
                        db_constraint=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="losses",
                        to="job_sequences.steprun",
                        verbose_name="step run",
                    ),
                ),
            ],
            options={
                "verbose_name": "lost worker",
                "verbose_name_plural": "lost workers",
                "ordering": ["id"],
            },
        ),
        migrations.CreateModel(
            name="StepFailure",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("step", sequences.models.ExactCharField(max_length=100, verbose_name="step")),
                ("item", models.IntegerField(default=-1, verbose_name="item")),
                ("attempt", models.PositiveIntegerField(verbose_name="attempt")),
                ("error", models.CharField(max_length=200, verbose_name="error")),
                ("message", models.TextField(blank=True, verbose_name="message")),
                (
                    "fingerprint",
                    models.CharField(
                        blank=True, db_default="", default="", editable=False, max_length=16
                    ),
                ),
                ("traceback", models.TextField(blank=True, verbose_name="traceback")),
                ("worker", models.CharField(blank=True, max_length=100, verbose_name="worker")),
                ("failed_at", models.DateTimeField(db_index=True, verbose_name="failed")),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="failures",
                        to="job_sequences.sequencerun",
                        verbose_name="run",
                    ),
                ),
                (
                    "step_run",
                    models.ForeignKey(
                        db_constraint=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="failures",
                        to="job_sequences.steprun",
                        verbose_name="step run",
                    ),
                ),
            ],
            options={
                "verbose_name": "failed attempt",
                "verbose_name_plural": "failed attempts",
                "ordering": ["id"],
            },
        ),
        migrations.AddField(
            model_name="sequencerun",
            name="parent",
            field=models.ForeignKey(
                blank=True,
                db_constraint=False,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="children",
                to="job_sequences.steprun",
                verbose_name="parent",
            ),
        ),
        migrations.CreateModel(
            name="StoredPlan",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "sequence",
                    sequences.models.ExactCharField(max_length=200, verbose_name="sequence"),
                ),
                ("fingerprint", models.CharField(max_length=64, verbose_name="fingerprint")),
                ("graph", models.JSONField(verbose_name="graph")),
                ("created_at", models.DateTimeField(verbose_name="created")),
            ],
            options={
                "verbose_name": "plan",
                "verbose_name_plural": "plans",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("sequence", "fingerprint"), name="job_sequences_plan_once"
                    )
                ],
            },
        ),
        migrations.AddField(
            model_name="sequencerun",
            name="plan",
            field=models.ForeignKey(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="runs",
                to="job_sequences.storedplan",
                verbose_name="plan",
            ),
        ),
        migrations.AddConstraint(
            model_name="steprun",
            constraint=models.UniqueConstraint(
                fields=("run", "step", "item"), name="job_sequences_step_run_once"
            ),
        ),
        migrations.AddIndex(
            model_name="sequencerun",
            index=models.Index(fields=["key", "sequence"], name="job_sequences_run_key"),
        ),
        migrations.AddIndex(
            model_name="sequencerun",
            index=models.Index(fields=["parent"], name="job_sequences_run_parent"),
        ),
        migrations.AddIndex(
            model_name="steprun",
            index=models.Index(fields=["wake_at"], name="job_sequences_step_wake"),
        ),
        migrations.AddIndex(
            model_name="sequencerun",
            index=models.Index(fields=["status", "created_at"], name="job_sequences_run_status"),
        ),
        migrations.AddIndex(
            model_name="sequencerun",
            index=models.Index(fields=["created_at"], name="job_sequences_run_created"),
        ),
        migrations.AddIndex(
            model_name="sequencerun",
            index=models.Index(
                fields=["sequence", "created_at"], name="job_sequences_run_sequence"
            ),
        ),
        migrations.AddConstraint(
            model_name="sequencerun",
            constraint=models.UniqueConstraint(
                fields=("key_scope", "active_key"), name="job_sequences_run_key_once"
            ),
        ),
        migrations.CreateModel(
            name="Schedule",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "sequence",
                    sequences.models.ExactCharField(max_length=200, verbose_name="sequence"),
                ),
                ("scope", sequences.models.ExactCharField(editable=False, max_length=200)),
                ("name", sequences.models.ExactCharField(max_length=100, verbose_name="name")),
                ("spec", models.JSONField(verbose_name="timetable")),
                (
                    "data",
                    models.JSONField(
                        blank=True,
                        encoder=sequences.models.JSONEncoder,
                        null=True,
                        verbose_name="data",
                    ),
                ),
                (
                    "subject_text",
                    sequences.models.ExactCharField(
                        blank=True,
                        db_default="",
                        db_index=True,
                        default="",
                        max_length=456,
                        verbose_name="subject",
                    ),
                ),
                (
                    "is_declared",
                    models.BooleanField(default=False, verbose_name="declared in code"),
                ),
                (
                    "fingerprint",
                    models.CharField(blank=True, default="", editable=False, max_length=64),
                ),
                ("declarations", models.JSONField(default=list, editable=False)),
                ("confirmed_at", models.DateTimeField(blank=True, editable=False, null=True)),
                (
                    "orphaned_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="orphaned"),
                ),
                ("paused_at", models.DateTimeField(blank=True, null=True, verbose_name="paused")),
                (
                    "next_slot",
                    models.DateTimeField(blank=True, null=True, verbose_name="next slot"),
                ),
                ("is_waiting", models.BooleanField(default=False, editable=False)),
                (
                    "wake_at",
                    models.DateTimeField(
                        blank=True, db_index=True, null=True, verbose_name="wake-up"
                    ),
                ),
                (
                    "last_slot",
                    models.DateTimeField(blank=True, null=True, verbose_name="last slot"),
                ),
                (
                    "last_started_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="last start"),
                ),
                (
                    "skipped_slot",
                    models.DateTimeField(blank=True, null=True, verbose_name="skipped slot"),
                ),
                (
                    "skip_reason",
                    models.CharField(blank=True, default="", editable=False, max_length=16),
                ),
                ("error", models.TextField(blank=True, default="", verbose_name="error")),
                ("failures", models.PositiveIntegerField(default=0, verbose_name="failures")),
                ("failed_at", models.DateTimeField(blank=True, null=True, verbose_name="failed")),
                ("version", models.PositiveBigIntegerField(default=0, editable=False)),
                ("created_at", models.DateTimeField(verbose_name="created")),
                ("updated_at", models.DateTimeField(verbose_name="updated")),
                (
                    "last_run",
                    models.ForeignKey(
                        blank=True,
                        db_constraint=False,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="+",
                        to="job_sequences.sequencerun",
                        verbose_name="last run",
                    ),
                ),
            ],
            options={
                "verbose_name": "schedule",
                "verbose_name_plural": "schedules",
                "permissions": [
                    ("pause_schedule", "Can pause and resume schedules"),
                    ("run_now_schedule", "Can start runs of schedules now"),
                ],
            },
        ),
        migrations.CreateModel(
            name="ScheduleOperation",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "sequence",
                    sequences.models.ExactCharField(max_length=200, verbose_name="sequence"),
                ),
                ("name", sequences.models.ExactCharField(max_length=100, verbose_name="name")),
                ("action", models.CharField(max_length=32, verbose_name="action")),
                ("reason", models.TextField(blank=True, verbose_name="reason")),
                ("by", models.CharField(blank=True, max_length=150, verbose_name="by")),
                (
                    "before",
                    models.JSONField(
                        blank=True,
                        encoder=sequences.models.JSONEncoder,
                        null=True,
                        verbose_name="before",
                    ),
                ),
                (
                    "after",
                    models.JSONField(
                        blank=True,
                        encoder=sequences.models.JSONEncoder,
                        null=True,
                        verbose_name="after",
                    ),
                ),
                ("done_at", models.DateTimeField(verbose_name="done")),
                (
                    "schedule",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="operations",
                        to="job_sequences.schedule",
                        verbose_name="schedule",
                    ),
                ),
            ],
            options={
                "verbose_name": "schedule operation",
                "verbose_name_plural": "schedule operations",
                "ordering": ["id"],
            },
        ),
        migrations.AddConstraint(
            model_name="schedule",
            constraint=models.UniqueConstraint(
                fields=("scope", "name"), name="job_sequences_schedule_once"
            ),
        ),
        migrations.CreateModel(
            name="LimitOverride",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "limit",
                    sequences.models.ExactCharField(
                        db_index=True, max_length=100, verbose_name="limit"
                    ),
                ),
                (
                    "concurrency",
                    models.PositiveIntegerField(blank=True, null=True, verbose_name="concurrency"),
                ),
                ("rate", models.PositiveIntegerField(blank=True, null=True, verbose_name="rate")),
                ("per", models.DurationField(blank=True, null=True, verbose_name="period")),
                ("by", models.CharField(blank=True, max_length=150, verbose_name="by")),
                ("reason", models.TextField(blank=True, verbose_name="reason")),
                ("created_at", models.DateTimeField(verbose_name="created")),
                ("ended_at", models.DateTimeField(blank=True, null=True, verbose_name="ended")),
                ("ended_by", models.CharField(blank=True, max_length=150, verbose_name="ended by")),
            ],
            options={
                "verbose_name": "limit override",
                "verbose_name_plural": "limit overrides",
                "ordering": ["id"],
            },
        ),
        migrations.CreateModel(
            name="StoredLimit",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "name",
                    sequences.models.ExactCharField(
                        max_length=100, unique=True, verbose_name="name"
                    ),
                ),
                (
                    "concurrency",
                    models.PositiveIntegerField(blank=True, null=True, verbose_name="concurrency"),
                ),
                ("rate", models.PositiveIntegerField(blank=True, null=True, verbose_name="rate")),
                ("per", models.DurationField(blank=True, null=True, verbose_name="period")),
                (
                    "override",
                    models.ForeignKey(
                        blank=True,
                        db_constraint=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="job_sequences.limitoverride",
                        verbose_name="override",
                    ),
                ),
            ],
            options={
                "verbose_name": "limit",
                "verbose_name_plural": "limits",
                "ordering": ["name"],
                "permissions": [("override_storedlimit", "Can override limits")],
            },
        ),
        migrations.CreateModel(
            name="LimitKey",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "key",
                    sequences.models.ExactCharField(blank=True, max_length=200, verbose_name="key"),
                ),
                ("next_at", models.DateTimeField(blank=True, editable=False, null=True)),
                ("granted_at", models.DateTimeField(blank=True, null=True, verbose_name="granted")),
                (
                    "wake_at",
                    models.DateTimeField(blank=True, db_index=True, editable=False, null=True),
                ),
                (
                    "limit",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="keys",
                        to="job_sequences.storedlimit",
                        verbose_name="limit",
                    ),
                ),
            ],
            options={
                "verbose_name": "limit line",
                "verbose_name_plural": "limit lines",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("limit", "key"), name="job_sequences_limit_key_once"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Permit",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "waiting"),
                            ("blocked", "waiting for another limit"),
                            ("granted", "granted"),
                        ],
                        max_length=8,
                        verbose_name="state",
                    ),
                ),
                ("priority", models.SmallIntegerField(default=0, verbose_name="priority")),
                ("ready_at", models.DateTimeField(verbose_name="ready")),
                ("granted_at", models.DateTimeField(blank=True, null=True, verbose_name="granted")),
                ("token", models.BigIntegerField(blank=True, editable=False, null=True)),
                ("replaces", models.BooleanField(default=False, editable=False)),
                (
                    "line",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="permits",
                        to="job_sequences.limitkey",
                        verbose_name="line",
                    ),
                ),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="permits",
                        to="job_sequences.sequencerun",
                        verbose_name="run",
                    ),
                ),
                (
                    "step_run",
                    models.ForeignKey(
                        db_constraint=False,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="permits",
                        to="job_sequences.steprun",
                        verbose_name="step run",
                    ),
                ),
            ],
            options={
                "verbose_name": "permit",
                "verbose_name_plural": "permits",
                "indexes": [
                    models.Index(
                        fields=["line", "state", "priority", "ready_at", "id"],
                        name="job_sequences_permit_order",
                    ),
                ],
            },
        ),
        migrations.RunPython(leave_room, fill_up),
        # MariaDB and MySQL make no index in a transaction.
        migrations.RunPython(index_failures, drop_index, atomic=False),
        migrations.RunPython(leave_out, take_in),
    ]
