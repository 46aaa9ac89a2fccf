"""The pictures of the console: `python -m testproject.screenshots [--into DIR] [--all DIR]`.

The demo's forms are submitted, a real worker does what it can, and a browser takes the pictures.
Those for the documentation go to `docs/images`, light and dark. Then every page of the console, and
a run with each status, goes to `build/pictures`, light, dark and on a phone, for people to look at:
the scenes come from the tests.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.urls import reverse
from playwright.sync_api import Browser, Page, sync_playwright

from testproject import browser, services
from testproject.demo import HOME, ROOT, free_port, managed, prepare
from testproject.visitor import MESSAGES, ORDERS, Visitor

WIDTH, HEIGHT = 1280, 800
TALLEST = 1400
SECONDS = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--all", type=Path, default=ROOT / "build" / "pictures")
    options = parser.parse_args()
    if not browser.chromium():
        raise SystemExit(f"No browser is installed: found none of {', '.join(browser.NAMES)}.")
    for directory in (options.into, options.all):
        directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        prepare(stack.enter_context(services.running("DATABASE_URL", "REDIS_URL")))
        address = f"http://127.0.0.1:{free_port(8000)}"
        worker = ["rundramatiq", "--processes", "1", "--threads", "4"]
        web = ["runserver", "--noreload", address.removeprefix("http://")]
        stack.enter_context(managed(*worker, log=HOME / "worker.log"))
        stack.enter_context(managed(*web, log=HOME / "web.log"))
        orders = play(address)
        # Django rejects queries in a thread where Playwright's loop runs.
        pages = documented(*orders)
        for scheme in ("light", "dark"):
            with opened(address, scheme) as page:
                for name, path in pages.items():
                    take(page, path, options.into / f"{name}-{scheme}.png")
        return take_all(options.all)


def take_all(into: Path) -> int:
    """Every page and status, on a database of their own. Returns the exit status."""
    scenes = [sys.executable, "-m", "pytest", "-q", "--rest", ROOT / "tests/browser/pictures.py"]
    environment = os.environ | {"PICTURES": str(into)}
    del environment["DJANGO_SETTINGS_MODULE"]  # the demo's; the tests have their own
    return subprocess.run(scenes, cwd=ROOT, env=environment).returncode


def play(address: str) -> tuple[Any, Any, Any]:
    """Submit the forms, and wait until the runs of three orders have gone as far as they can.

    One has succeeded, one is waiting for an approval, one has failed.
    """
    from sequences.models import SequenceRun
    from testproject.orders.sequences import FulfilOrder

    pickups()
    visitor = Visitor(address)
    visitor.wait(30)
    orders = [FulfilOrder.runs.get(key=str(visitor.order(order))) for order in ORDERS]
    for message in MESSAGES:
        visitor.write(message)
    wait_until(lambda: SequenceRun.objects.unfinished().count() == 1)  # that waits for approval
    succeeded, waiting, failed = orders
    return succeeded, waiting, failed


def pickups() -> None:
    """Two schedules: one that has started a run, and one that somebody has paused."""
    from sequences import cron, every
    from testproject.orders.sequences import ShipParcel

    data = {"name": "Snail & Sons", "order": "pick-up"}
    timetable = cron("0 17 * * MON-FRI", timezone="Europe/Berlin")
    by = {"by": "admin", "reason": "The van comes at five."}
    create = ShipParcel.schedules.create
    create("pick-up", timetable, data=data, **by).run_now(by="admin", reason="It is late today.")
    create("returns", every(timedelta(hours=6)), data=data).pause(by="admin", reason="Holidays.")


def documented(succeeded: Any, waiting: Any, failed: Any) -> dict[str, str]:
    """The pages shown in the documentation, by name."""
    page = "admin:job_sequences_sequencerun"
    return {
        "console-runs": reverse(f"{page}_changelist"),
        "console-run": reverse(f"{page}_change", args=[waiting.pk]),
        "console-failed-run": reverse(f"{page}_change", args=[failed.pk]),
        "console-subject": reverse("admin:orders_order_change", args=[waiting.subject.pk]),
        "console-confirm": reverse(f"{page}_action", args=[waiting.pk, "cancel"]),
        "console-failures": reverse(f"{page}_failure_groups"),
        "progress": "/contact/",
    }


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"The demo does not come to rest; the logs are in {HOME}.")
        time.sleep(0.2)


@contextmanager
def opened(address: str, scheme: Any) -> Iterator[Page]:
    """A page, opened by a user who may see everything."""
    with sync_playwright() as playwright:
        launched: Browser = playwright.chromium.launch(
            executable_path=browser.chromium(), args=browser.FLAGS
        )
        page = launched.new_page(
            base_url=address, viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme
        )
        page.goto("/admin/login/")
        page.fill("#id_username", "admin")
        page.fill("#id_password", "admin")
        page.click("input[type=submit]")
        yield page
        launched.close()


def take(page: Page, path: str, into: Path) -> None:
    page.goto(path)
    if path == "/contact/":
        write(page)
    height = min(page.evaluate("document.documentElement.scrollHeight"), TALLEST)
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
    page.screenshot(path=into, full_page=True, clip=clip)  # type: ignore[arg-type]
    print(f"{into} ({into.stat().st_size // 1024} KiB)")


def write(page: Page) -> None:
    """Submit the contact form, and open the page that shows its progress."""
    page.fill("#id_name", "Ada")
    page.fill("#id_email", "ada@example.com")
    page.locator("#id_topic").select_option(index=1)
    page.fill("#id_body", "Can your engine weave algebraic patterns?")
    page.get_by_role("button", name="Send").click()
    page.locator("progress[value='75']").wait_for()


if __name__ == "__main__":
    raise SystemExit(main())
