"""Tests in a real browser."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium():
    """The browser's program: what CHROMIUM names, or what is installed; None if none is."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
