"""A database router of a project whose replica must not be read by the engine."""


class Router:
    """Refuses every read; writes go to the default database."""

    reads: list[str] = []

    def db_for_read(self, model, **hints):
        self.reads.append(model.__name__)
        raise AssertionError(f"{model.__name__} is read through db_for_read")

    def db_for_write(self, model, **hints):
        return "default"
