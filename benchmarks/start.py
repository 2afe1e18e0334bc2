"""Start-up: `crossover --help`, and `run` on an experiment that is finished.

`python benchmarks/start.py` prints the median and the worst of a few starts, and peak memory.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

CROSSOVER = str(Path(sys.executable).parent / "crossover")
REPEATS = 5


def timed(words: list[str]) -> tuple[float, float]:
    """Return the seconds of one command and its peak memory in MiB."""
    start = time.perf_counter()
    pid = subprocess.Popen([CROSSOVER, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"crossover {' '.join(words)}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> int:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as store:
        run = ["run", "--limit", "20", "--only", "zero_shot,retrieved_demos", "--no-progress", "--store", store]
        first, _ = timed(run)
        print(f"the run itself took {first:.1f} s\n")
        print("command                    median s  worst s  peak MiB")
        for name, words in (("crossover --help", ["--help"]), ("crossover run, finished", run)):
            timings = [timed(words) for _ in range(REPEATS)]
            seconds = [s for s, _ in timings]
            peak = max(m for _, m in timings)
            print(f"{name:26} {median(seconds):8.2f} {max(seconds):8.2f}  {peak:8.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
