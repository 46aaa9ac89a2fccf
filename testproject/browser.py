"""The browser for tests and screenshots: Debian's chromium, or another one that is installed."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
#: It sends no requests to other servers, and also runs as root.
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
    """The path of the program: what CHROMIUM names, or what is installed; None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


if __name__ == "__main__":
    raise SystemExit(not chromium())
