import os
import time
from pathlib import Path

LIMIT = 120  # seconds, after which a step that was forgotten fails


class Gate:
    """Where a step waits in the middle until the test lets it go on. A directory, so that it
    works between processes."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)

    def __str__(self):
        return str(self.directory)

    def open(self, pid="all"):
        """Let all pass that wait, and that will come; or only those of this process."""
        (self.directory / f"open-{pid}").touch()

    def visitors(self):
        """The process ids of those that have come, in their order."""
        book = self.directory / "visitors"
        return [int(line) for line in book.read_text().split()] if book.exists() else []

    def pass_through(self):
        """What the step calls."""
        with (self.directory / "visitors").open("a") as book:
            book.write(f"{os.getpid()}\n")
        deadline = time.monotonic() + LIMIT
        keys = [self.directory / f"open-{pid}" for pid in ("all", os.getpid())]
        while not any(key.exists() for key in keys):
            assert time.monotonic() < deadline, "the test has forgotten this gate"
            time.sleep(0.02)
