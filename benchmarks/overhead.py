"""What the accuracy pass adds to the model: against bare `dspy.Evaluate`, and against the model's own latency.

`python benchmarks/overhead.py` prints rows per second with a model that answers at once, both ways with the same
threads, and the wall time with a model that takes 200 ms a call at 64 calls at once, against calls x 0.2 s / 64.
"""

import argparse
import contextlib
import io
import logging
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from crossover.eval.run.measure import measure_accuracy
from crossover.eval.run.progress import Progress
from crossover.models.load import LoadedModel, local_lm
from crossover.models.plain import PlainAdapter
from crossover.models.spec import ModelSpec
from crossover.models.usage import Usage
from crossover.programs.load import builtin_task
from crossover.programs.task import Fitted, Task

SECONDS, THREADS = 0.2, 64


class Canned:
    """An engine that gives the same answer to every request, after a while."""

    local, context = True, 4096

    def __init__(self, seconds: float) -> None:
        """Take `seconds` for each call."""
        self.seconds = seconds

    def __deepcopy__(self, memo: dict[int, Any]) -> "Canned":
        """Return itself, as every engine must."""
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Wait, and answer."""
        if self.seconds:
            time.sleep(self.seconds)
        usage = lm15.Usage(input_tokens=30, output_tokens=1)
        message = lm15.Message.assistant("json")
        return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)


def crossover(task: Task, examples: list[dspy.Example], seconds: float, threads: int) -> float:
    """Return the seconds of the accuracy pass, rows written to the disk."""
    lm = local_lm("local/canned", Canned(seconds), 8, 0.0)
    model = LoadedModel(ModelSpec("canned"), lm, PlainAdapter(), "", True, 4096, lambda usage: 0.0)
    fitted, progress = Fitted(task.program(), lm, Usage(), Path()), Progress(total_cells=1, enabled=False)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        rows, _ = measure_accuracy(
            fitted, task, examples, model, file=Path(folder) / "rows.jsonl", threads=threads, progress=progress
        )
        took = time.perf_counter() - start
    assert len(rows) == len(examples)
    assert not any(r.failure for r in rows)
    return took


def bare(task: Task, examples: list[dspy.Example], threads: int) -> float:
    """Return the seconds of `dspy.Evaluate` on the same program."""
    program, lm = task.program(), local_lm("local/canned", Canned(0), 8, 0.0)
    with dspy.context(lm=lm, adapter=PlainAdapter()), contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        dspy.Evaluate(devset=examples, metric=task.metric, num_threads=threads, display_progress=False)(program)
        return time.perf_counter() - start


def main() -> int:
    """Measure and print the tables."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rows", type=int, default=2000)
    p.add_argument("--repeats", type=int, default=3)
    a = p.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    task = builtin_task("stdlib_module")
    examples = [e.copy(id=str(n)) for n, e in enumerate((task.train * 99)[: a.rows])]
    bare(task, examples[:100], 8)
    print("threads  dspy.Evaluate rows/s  accuracy pass rows/s  ratio")
    for threads in (1, 8, 64):
        # The best of several, taken in turns: whatever else the machine does only ever adds time.
        pairs = [(bare(task, examples, threads), crossover(task, examples, 0.0, threads)) for _ in range(a.repeats)]
        theirs, ours = (len(examples) / min(p[k] for p in pairs) for k in (0, 1))
        print(f"{threads:7}  {theirs:20.0f}  {ours:20.0f}  {ours / theirs:5.2f}x")
    took, ideal = crossover(task, examples, SECONDS, THREADS), len(examples) * SECONDS / THREADS
    print(f"\n{SECONDS * 1000:.0f} ms a call, {THREADS} at once, {len(examples)} calls: {took:.2f} s, ", end="")
    print(f"{took / ideal:.2f} times calls x {SECONDS} s / {THREADS}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
