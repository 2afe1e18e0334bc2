"""What the accuracy pass adds to the model: against bare `dspy.Evaluate`, and against the model's own latency.

`python benchmarks/overhead.py [--model NAME]` prints, with models that answer at once:
rows per second of the pass and of `dspy.Evaluate`, with the same threads, for a model of one word a prompt;
rows per second by the number of demonstrations, with the template and the tokenizer of the model, for prompts that are
encoded whole from DSPy's threads, and for those that are sent ahead, the best of several;
and the wall time with a model that takes 200 ms a call at 64 calls at once, against calls x 0.2 s / 64.
"""

import argparse
import contextlib
import io
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from crossover.eval.run.measure import measure_accuracy
from crossover.eval.run.progress import Progress
from crossover.models.batching import Job
from crossover.models.device import accelerator, load_weights
from crossover.models.encoding import Beginning, Messages, PromptEncoder
from crossover.models.engine import Engine
from crossover.models.load import LoadedModel, local_lm
from crossover.models.local import LocalEngine
from crossover.models.plain import PlainAdapter
from crossover.models.prompt import first_messages
from crossover.models.source import weights_source
from crossover.models.spec import ModelSpec
from crossover.models.usage import Usage
from crossover.programs.demos import with_demos
from crossover.programs.load import builtin_task
from crossover.programs.score import score_examples
from crossover.programs.task import Fitted, Task

SECONDS, THREADS = 0.2, 64


class Canned:
    """An engine that gives the same answer to every request, after a while."""

    local, context, remarks = True, 4096, ()

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


class Whole(PromptEncoder):
    """An encoder that encodes every prompt whole."""

    def _beginning(self, messages: Messages, contents: Sequence[str]) -> Beginning | None:
        return None


class Instant(LocalEngine):
    """A local engine that does all but run its model: it answers every prompt with the same word."""

    @cached_property
    def word(self) -> list[int]:
        """Return the tokens of the answer."""
        return list(self.tokenizer("json", add_special_tokens=False)["input_ids"])

    def _answer(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_result((self.word, "stop"))


def crossover(
    task: Task, examples: list[dspy.Example], engine: Engine, threads: int, program: dspy.Module | None = None
) -> float:
    """Return the seconds of the accuracy pass, rows written to the disk."""
    lm = local_lm("local/canned", engine, 8, 0.0)
    model = LoadedModel(ModelSpec("canned"), lm, PlainAdapter(), "", True, 4096, lambda usage: 0.0)
    fitted = Fitted(program or task.program(), lm, Usage(), Path())
    progress = Progress(total_cells=1, enabled=False)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        rows, _ = measure_accuracy(
            fitted, task, examples, model, file=Path(folder) / "rows.jsonl", threads=threads, progress=progress
        )
        took = time.perf_counter() - start
    assert len(rows) == len(examples)
    assert not rows.failed
    return took


def bare(task: Task, examples: list[dspy.Example], threads: int) -> float:
    """Return the seconds of `dspy.Evaluate` on the same program."""
    program, lm = task.program(), local_lm("local/canned", Canned(0), 8, 0.0)
    with dspy.context(lm=lm, adapter=PlainAdapter()), contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        dspy.Evaluate(devset=examples, metric=task.metric, num_threads=threads, display_progress=False)(program)
        return time.perf_counter() - start


def by_demonstrations(
    name: str, task: Task, examples: list[dspy.Example], numbers: Sequence[int], repeats: int
) -> None:
    """Print rows per second of processor time by the number of demonstrations, with prompts encoded whole and ahead."""
    model, tokenizer = load_weights(weights_source(name), trust_remote_code=False)
    model.config.max_position_embeddings = 1_000_000

    def seconds_whole(program: dspy.Module, few: list[dspy.Example]) -> float:
        start = time.process_time()
        list(score_examples(program, few, task.metric, threads=8))
        return time.process_time() - start

    def seconds_ahead(program: dspy.Module) -> float:
        # A new engine each time, which knows no beginning yet.
        engine, start = Instant(model, tokenizer), time.process_time()
        crossover(task, examples, engine, 8, program)
        return time.process_time() - start

    print(f"\n{name} without its forward passes, accelerator: {accelerator()}; rows per second of processor time")
    print("demonstrations  prompt tokens  whole, in DSPy's threads  sent ahead  ratio")
    whole = Instant(model, tokenizer)
    whole._encoder = Whole(tokenizer)
    for demos in numbers:
        program = with_demos(task.program(), (task.train * 9)[:demos])
        few = examples[: max(30, 500 // (demos + 1))]
        with dspy.context(adapter=PlainAdapter(), lm=local_lm("local/canned", whole, 8, 0.0), disable_history=True):
            tokens = whole.count_tokens(first_messages(program, examples[0]))
            slow = len(few) / min(seconds_whole(program, few) for _ in range(repeats))
        fast = len(examples) / min(seconds_ahead(program) for _ in range(repeats))
        print(f"{demos:14}  {tokens:13,}  {slow:24.0f}  {fast:10.0f}  {fast / slow:4.1f}x", flush=True)


def main() -> int:
    """Measure and print the tables."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rows", type=int, default=2000)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--model", default="smollm2")
    p.add_argument("--asked", type=int, default=5000, help="questions of the second table")
    p.add_argument("--demos", type=int, nargs="*", default=[0, 8, 64, 128])
    a = p.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    task = builtin_task("stdlib_module")
    examples = [e.copy(id=str(n)) for n, e in enumerate((task.train * 99)[: a.rows])]
    bare(task, examples[:100], 8)
    print("threads  dspy.Evaluate rows/s  accuracy pass rows/s  ratio")
    for threads in (1, 8, 64):
        # The best of several, taken in turns: whatever else the machine does only ever adds time.
        pairs = [
            (bare(task, examples, threads), crossover(task, examples, Canned(0), threads)) for _ in range(a.repeats)
        ]
        theirs, ours = (len(examples) / min(p[k] for p in pairs) for k in (0, 1))
        print(f"{threads:7}  {theirs:20.0f}  {ours:20.0f}  {ours / theirs:5.2f}x")
    asked = [e.copy(id=str(n)) for n, e in enumerate((examples * 99)[: a.asked])]
    by_demonstrations(a.model, task, asked, a.demos, a.repeats)
    took, ideal = crossover(task, examples, Canned(SECONDS), THREADS), len(examples) * SECONDS / THREADS
    print(f"\n{SECONDS * 1000:.0f} ms a call, {THREADS} at once, {len(examples)} calls: {took:.2f} s, ", end="")
    print(f"{took / ideal:.2f} times calls x {SECONDS} s / {THREADS}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
