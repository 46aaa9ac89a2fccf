"""``manage.py sequences``: one class for each subcommand."""
