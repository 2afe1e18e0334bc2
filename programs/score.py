"""Run a program over examples and score it: the one copy, used for selection on val and for the final test."""

import contextvars
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from crossover.models.usage import Usage
from crossover.programs.judge import Judged
from crossover.programs.task import Metric


@dataclass(frozen=True)
class Row:
    """The result of one example."""

    id: str
    score: float | None
    """0.0 to 1.0, or None for a failure."""
    failure: str
    """Empty, or `lm: …`, `parse: …`, `metric: …`, `program: …` with the reason."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    calls: int
    """Language-model calls made."""
    seconds: float
    """Wall time of the program; no latency, because calls are concurrent."""
    usd: float | None
    """Dollars that an API charged, 0.0 for a local model, None for an unknown price."""
    output: dict[str, Any]
    """The output fields as predicted."""


def score_example(
    program: dspy.Module,
    example: dspy.Example,
    metric: Metric,
    price: Callable[[dict[str, dict[str, Any]]], float | None],
) -> Row:
    """Run and score one example in the calling DSPy context; a failure is a row with a reason, never a zero.

    `price` turns DSPy's usage (model name to token counts) into dollars, or None when it cannot.
    """
    score, failure, output = None, "", dict[str, Any]()
    with dspy.track_usage() as tracker:
        start = time.perf_counter()
        try:
            prediction = program(**example.inputs())
        except AdapterParseError as e:
            failure = f"parse: {str(e.lm_response)[:200]!r}"
        except dspy.LMError as e:
            failure = f"lm: {type(e).__name__}: {str(e)[:200]}"
        except Exception as e:
            failure = f"program: {type(e).__name__}: {str(e)[:200]}"
        seconds = time.perf_counter() - start
    if not failure:
        output = {k: v for k, v in prediction.toDict().items() if k not in example.inputs()}
        try:
            value = metric(example, prediction)
            if isinstance(value, Judged):
                output["judgement"] = value.facts
            score = float(value)
            if not math.isfinite(score):
                raise ValueError(f"score is {score}")
        except Exception as e:
            score, failure = None, f"metric: {type(e).__name__}: {str(e)[:200]}"
    used = Usage.of_calls(tracker.usage_data)
    return Row(
        id=str(example["id"]),
        score=score,
        failure=failure,
        prompt_tokens=used.prompt_tokens,
        cached_tokens=used.cached_tokens,
        completion_tokens=used.completion_tokens,
        calls=used.calls,
        seconds=seconds,
        usd=price(tracker.get_total_tokens()),
        output=output,
    )


def score_examples(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    metric: Metric,
    *,
    price: Callable[[dict[str, dict[str, Any]]], float | None] = lambda usage: 0.0,
    threads: int = 8,
) -> Iterator[Row]:
    """Yield one row per example as it finishes, with at most `threads` in flight, in the calling DSPy context.

    An exception that ends the run (budget, limit) is raised after the rows of the calls under way.
    """
    if threads == 1:
        yield from (score_example(program, e, metric, price) for e in examples)
        return
    waiting, lock, ended = iter(examples), threading.Lock(), threading.Event()
    # Each worker fetches its own next example: handing every one over from here costs two thread switches a row.
    rows: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            while not ended.is_set():
                with lock:
                    example = next(waiting, None)
                if example is None:
                    break
                rows.put(score_example(program, example, metric, price))
        except BaseException as e:  # a spent budget is not an Exception
            rows.put(e)
        finally:
            rows.put(None)

    yield from _rows_of(work, rows, ended, workers=max(1, min(threads, len(examples))))


def _rows_of(
    work: Callable[[], None],
    rows: "queue.SimpleQueue[Row | BaseException | None]",
    ended: threading.Event,
    *,
    workers: int,
) -> Iterator[Row]:
    """Run `work` in threads and yield the rows that it puts, up to one None from each; raise its first exception."""
    # DSPy's settings live in context variables, which plain threads do not inherit.
    running = [
        threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True) for _ in range(workers)
    ]
    try:
        for w in running:
            w.start()
        working, stop = workers, None
        while working:
            row = rows.get()
            if row is None:
                working -= 1
            elif isinstance(row, BaseException):
                stop = stop or row
                ended.set()
            else:
                yield row
        if stop is not None:
            raise stop
    finally:
        ended.set()
        for w in running:
            if w.is_alive():
                w.join()


def mean_score(rows: Sequence[Row]) -> float:
    """Return the mean score with failures counted as 0, for selecting among candidates on val."""
    return sum(r.score or 0.0 for r in rows) / len(rows) if rows else 0.0
