"""Start-up: `crossover --help`, `validate` of a file with a wrong key, and `run` on an experiment that is finished.

`python benchmarks/start.py [--model NAME]` prints the wall time, the processor time, its ratio to that of `import dspy`
in a process of its own, which other work on the machine lengthens as much, and the peak memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

CROSSOVER = [sys.executable, "-m", "crossover.eval.cli.main"]
FILE = """\
version: 1
name: start
WRONGtasks: [stdlib_module]
models: [MODEL]
methods: [zero_shot, retrieved_demos]
"""


class Start(NamedTuple):
    """What one start took."""

    wall: float
    processor: float
    mebibytes: float


def timed(command: list[str], expected: int = 0) -> Start:
    """Run a command that ends with the expected exit code."""
    begun = time.perf_counter()
    pid = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != expected:
        raise SystemExit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return Start(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def main() -> int:
    """Measure and print the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="smollm2")
    p.add_argument("--repeats", type=int, default=5)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        right, wrong = folder / "right.yaml", folder / "wrong.yaml"
        for file, key in ((right, ""), (wrong, "naem: x\n")):
            file.write_text(FILE.replace("WRONG", key).replace("MODEL", a.model), encoding="utf-8")
        run = [*CROSSOVER, "run", str(right), "--limit", "20", "--no-progress", "--store", str(folder / "mlruns")]
        print(f"the run itself took {timed(run).wall:.1f} s with {a.model}\n")
        commands = {
            "import dspy": ([sys.executable, "-c", "import dspy"], 0),
            "crossover --help": ([*CROSSOVER, "--help"], 0),
            "crossover validate, wrong key": ([*CROSSOVER, "validate", str(wrong)], 2),
            "crossover run, finished": (run, 0),
        }
        # In turns, so that whatever else the machine does meets them all.
        starts = [{name: timed(*command) for name, command in commands.items()} for _ in range(a.repeats)]
    print("command                        wall s  processor s  ratio  peak MiB")
    least = median(s["import dspy"].processor for s in starts)
    for name in commands:
        wall, processor = (median(s[name][k] for s in starts) for k in (0, 1))
        peak = max(s[name].mebibytes for s in starts)
        print(f"{name:30} {wall:6.2f}  {processor:11.2f}  {processor / least:4.1f}x  {peak:8.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
