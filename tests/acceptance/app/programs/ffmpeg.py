"""What stands for ffmpeg: it writes a file, and how far it is, as ffmpeg does with `-progress`."""

import os
import sys
import time
from pathlib import Path


def encode(source: Path, target: Path) -> None:
    """The source says how many seconds of film it has, and how many of them take a second."""
    seconds, pace = map(float, source.read_text().split())
    with source.with_suffix(".pids").open("a") as book:
        book.write(f"{os.getpid()}\n")
    with target.open("w") as file:
        done = 0.0
        while done < seconds:
            time.sleep(0.1)
            done = min(done + pace / 10, seconds)
            file.write(f"{done}\n")
            print(f"frame=1\nout_time_us={done * 1e6:.0f}\nprogress=continue", flush=True)
    print("progress=end", flush=True)


if __name__ == "__main__":
    encode(Path(sys.argv[sys.argv.index("-i") + 1]), Path(sys.argv[-1]))
