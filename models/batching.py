"""Group waiting requests by the beginning that their prompts share, and decode them in batches that fit in memory."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from dspy import lm15

from crossover.models.decode import Prompt, Row, decode
from crossover.models.errors import UserError
from crossover.models.memory import BatchBound, Size, drop_tensors, in_halves
from crossover.models.prefix import Prefix, PrefixStore, shared_tokens

FEWEST_SHARED = 32
"""Prompts that share fewer leading tokens are not grouped."""


@dataclass(eq=False)
class Job:
    """One request on its way through the engine."""

    prompt: Prompt
    """With all its token ids, those of a shared prefix and of the grammar's opening too."""
    adapter: str
    cached: int = 0
    """Leading tokens whose states were computed before this request."""
    answer: "Future[tuple[list[int], str]]" = field(default_factory=Future)
    """New token ids, and `stop` or `length`."""

    def __post_init__(self) -> None:
        """Keep the token ids as an array, for comparing prompts; shape (tokens,)."""
        self.ids = np.asarray(self.prompt.ids, np.int32)

    def usage(self, new: Sequence[int]) -> lm15.Usage:
        """Return the tokens of the prompt and of the answer `new`."""
        read = len(self.ids) - (len(self.prompt.grammar.opening) if self.prompt.grammar else 0)
        return lm15.Usage(
            input_tokens=read,
            output_tokens=len(new),
            total_tokens=read + len(new),
            cache_read_tokens=min(self.cached, read),
        )


def groups_by_prefix(jobs: Sequence[Job]) -> Iterator[tuple[list[Job], int]]:
    """Yield groups of jobs of one adapter whose prompts begin alike, with the number of tokens they share.

    At least one token of every prompt is left out of the shared beginning: its logits begin the answer.
    """
    group: list[Job] = []
    shared = 0
    for job in sorted(jobs, key=lambda j: (j.adapter, j.ids.astype(">i4").tobytes())):
        own = len(job.ids) - 1
        if group and group[0].adapter == job.adapter:
            # In sorted order, what the first and the last share all between them share.
            common = min(own, shared_tokens(group[0].ids, job.ids))
            # Two that agree by chance in more than their system text must not split it off from the rest.
            if common >= FEWEST_SHARED and (len(group) == 1 or common >= 0.8 * shared):
                group.append(job)
                shared = min(common, shared)
                continue
        if group:
            yield group, shared
        group, shared = [job], own
    if group:
        yield group, shared


class Decoder(Protocol):
    """The model that answers, and what its batches need; an engine is one."""

    model: Any
    stop: frozenset[int]
    """Tokens that end an answer."""
    bound: BatchBound
    prefixes: PrefixStore


@contextlib.contextmanager
def failing(jobs: Sequence[Job]) -> Iterator[None]:
    """Raise an error in the threads that wait for the answers of `jobs`, and not in this one."""
    try:
        yield
    except Exception as e:
        drop_tensors(e)
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(e)


def decode_jobs(engine: Decoder, jobs: Sequence[Job], prefix: Prefix | None) -> None:
    """Answer every job, in batches that fit in memory; a lone prompt that does not fit fails with a UserError."""
    skip = 0 if prefix is None else len(prefix)

    def answer(rows: Sequence[Row]) -> None:
        for n, new in decode(engine.model, prefix, rows, engine.stop):
            jobs[n].answer.set_result((new, "stop" if new[-1] in engine.stop else "length"))

    def make_room(rows: Sequence[Row]) -> bool:
        prompts = [r.prompt for r in rows]
        size = Size(len(rows), max(len(p.ids) for p in prompts), max(p.max_tokens for p in prompts), skip)
        freed = engine.prefixes.clear()
        if size.rows > 1:
            engine.bound.lower(size)
        elif not freed:
            jobs[rows[0].number].answer.set_exception(UserError(engine.bound.refusal(size)))
        return freed

    for numbers in engine.bound.batches([(len(j.ids) - skip, j.prompt.max_tokens) for j in jobs], skip):
        # Those of requests that were sent ahead may have been given up by now.
        numbers = [n for n in numbers if jobs[n].answer.set_running_or_notify_cancel()]
        with failing([jobs[n] for n in numbers]):
            batch = [Row(n, replace(jobs[n].prompt, ids=jobs[n].prompt.ids[skip:])) for n in numbers]
            in_halves(batch, answer, lambda row: not jobs[row.number].answer.done(), make_room)
