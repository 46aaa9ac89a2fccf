"""The browser that tests and screenshots drive: Debian's chromium, or another that is here."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
#: It asks no other server for anything, and runs as root, too.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """Its program: what CHROMIUM names, or what is installed; None if none is."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


if __name__ == "__main__":
    raise SystemExit(not chromium())
