"""Sort waiting requests into batches: which of them begin alike, and which fit together."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from dspy import lm15

from crossover.models.choices import Trie
from crossover.models.prefix import shared_tokens

FEWEST_SHARED = 32
"""Shorter common beginnings are not looked for."""


@dataclass(eq=False)
class Job:
    """One request on its way through the engine."""

    ids: np.ndarray
    """The prompt's token ids, shape (tokens,)."""
    adapter: str
    max_tokens: int
    temperature: float
    seed: int
    choices: Trie | None = None
    """The answers allowed; None allows any."""
    heard: Callable[[int], None] | None = None
    """Called with each new token id as it comes."""
    cached: int = 0
    """Leading tokens whose states were there before this request."""
    answer: "Future[tuple[list[int], str]]" = field(default_factory=Future)
    """New token ids, and `stop` or `length`."""

    def usage(self, new: Sequence[int]) -> lm15.Usage:
        """Return the tokens that the request took, with its answer's."""
        return lm15.Usage(
            input_tokens=len(self.ids),
            output_tokens=len(new),
            total_tokens=len(self.ids) + len(new),
            cache_read_tokens=self.cached,
        )


def alike(jobs: Sequence[Job]) -> Iterator[tuple[list[Job], int]]:
    """Yield groups of jobs of one adapter that begin alike, and how many tokens they share.

    At least one token of every prompt stays outside of what is shared: its logits begin the answer.
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


def batches(jobs: Sequence[Job], skip: int, max_tokens: int) -> Iterator[list[Job]]:
    """Split into batches of similar length within a bound of padded tokens, `skip` tokens of each not counted."""
    batch: list[Job] = []
    for job in sorted(jobs, key=lambda j: (len(j.ids), j.max_tokens)):
        width = len(job.ids) - skip + job.max_tokens
        if batch and (len(batch) + 1) * width > max_tokens:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch
