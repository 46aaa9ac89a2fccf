"""How the cost of a step grows: `python benchmarks/growth.py`.

With the size of `data`, the number of steps, and the number of worker processes. See
docs/benchmarks.md.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from inline import Child, Thread, alternating, answer, children, declare, set_up
from steps import environment_of, temporary_database

SIZES = (1, 10, 100, 1000)
LENGTHS = (5, 20, 80)
WORKERS = (1, 2, 4, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sequences", type=int, default=400, help="for the workers")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        set_up()
        answer({"part": part, "start": start})
        return 0
    from testproject import services

    with services.running("DATABASE_URL", "REDIS_URL") as urls:
        steps_and_sizes(urls, options.rounds)
        workers(urls, options.sequences)
    return 0


def steps_and_sizes(urls: dict[str, str], rounds: int) -> None:
    with (
        temporary_database(urls["DATABASE_URL"]) as url,
        children(Child(__file__, environment_of(urls, url))) as (one,),
    ):
        cases = [("KB of data", (5, size)) for size in SIZES]
        cases += [("steps", (length, 1)) for length in LENGTHS]
        print(
            f"{'µs of CPU a step, direct':28} {'thread':>8} {'ratio':>6} {'PostgreSQL':>11} ratio"
        )
        asked = [lambda case=case: one.ask("part", *case) for _, case in cases]
        for (name, case), (costs, ratios) in zip(cases, alternating(asked, rounds), strict=True):
            number = case[1] if name == "KB of data" else case[0]
            print(
                f"{number:>6} {name:21} {costs[0]:>8.0f} {ratios[0]:>6.2f} {costs[1]:>11.0f} "
                f"{ratios[1]:.2f}",
                flush=True,
            )


def part(steps: int, kilobytes: int) -> tuple[float, float]:
    """Five runs, which one thread executes: what each step costs."""
    cls, thread = declare(steps)["direct"], _thread()
    for _ in range(5):
        cls.start({"n": 0, "text": "x" * (kilobytes * 1000)})
    costs = thread.costs(thread.drain)
    return costs[0] / (5 * steps), costs[1] / (5 * steps)


@cache
def _thread() -> Thread:
    return Thread()


# Workers: those of steps.py.


def workers(urls: dict[str, str], count: int) -> None:
    script = str(Path(__file__).with_name("steps.py"))
    print(f"\n{'processes':>10} {'sequences/s':>12} {'ratio':>6} {'CPU µs a step, theirs':>22}")
    first = 0.0
    for number in WORKERS:
        with temporary_database(urls["DATABASE_URL"]) as url:
            environment = environment_of(urls, url)
            with children(Child(__file__, environment)) as (one,):
                one.ask("start", count)
                command = [sys.executable, script, "--role", "worker", "--queue", "direct"]
                command += ["--threads", "4", "--until", str(count), "--together"]
                done = together(command, environment, number)
        seconds = max(each["seconds"] for each in done)
        first = first or count / seconds
        cpu = sum(each["cpu"] for each in done) / count / 5 * 1e6
        print(
            f"{number:>10} {count / seconds:>12.0f} {count / seconds / first:>6.2f} {cpu:>22.0f}",
            flush=True,
        )


def together(
    command: list[str], environment: dict[str, str], number: int
) -> list[dict[str, float]]:
    """What so many processes report, which begin when the last of them is ready."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    made = [subprocess.Popen(command, env=environment, **pipes) for _ in range(number)]
    for process in made:
        process.stdout.readline()
    for process in made:
        process.stdin.write("\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in made]


def start(count: int) -> None:
    _of_steps()["direct"].start_many(count)


@cache
def _of_steps() -> Any:
    import steps

    return steps.declare_sequences()


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    sys.exit(main())
