"""Sort waiting requests into batches: by the beginning that their prompts share, and by length."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from dspy import lm15

from crossover.models.decode import Prompt
from crossover.models.prefix import shared_tokens

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
        self.ids = np.asarray(self.prompt.ids)

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


def batches_of(widths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions of rows of similar width, as many at a time as `batch_tokens` padded tokens allow."""
    batch: list[int] = []
    for n in sorted(range(len(widths)), key=lambda n: widths[n]):
        # Rows come by width, so that this one is the widest so far and sets the padding of all.
        if batch and (len(batch) + 1) * widths[n] > batch_tokens:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch
