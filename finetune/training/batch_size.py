"""Split batches so that they fit in memory, and train all the same on the whole of them.

The library's `auto_find_batch_size` goes on with a smaller batch, and so takes other steps on a smaller machine. Here a
batch goes through the model in parts, whose gradients add up to those of the whole.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from crossover.finetune.training.checkpoints import TrainingRun
from crossover.finetune.training.loss import apart, in_rows_apart
from crossover.finetune.training.options import TrainingOptions
from crossover.models.errors import UserError
from crossover.models.memory import SHARE, drop_tensors, fits, out_of_memory, release_memory

STATE_BYTES = 12
"""Bytes beside a trainable weight: its gradient and AdamW's two moments, in float32."""


def split(options: TrainingOptions, part: int) -> TrainingOptions:
    """Return the options with `part` rows at a time, and with as many rows to a step as before."""
    return replace(options, batch_size=part, accumulate=options.rows_per_batch * options.accumulate // part)


def parts_of(batch: int, most: int) -> int:
    """Return the rows of the largest part, up to `most` but at least one, that divides a batch evenly."""
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(1, most))


def by_rows(trainer: Any) -> Any:
    """Return a class of trainer, of those that average the loss of a batch, whose parts count by their rows.

    The library gives each part of a step the same weight, also the smaller one that an epoch ends on.
    """

    class ByRows(trainer):  # type: ignore[misc]  # the library's trainers are untyped
        rows_in_step = 0

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            parts, items = super().get_batch_samples(*args, **kwargs)
            self.rows_in_step = sum(map(_rows, parts))
            return parts, items

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if not self.rows_in_step:
                # Outside of a step, where what memory holds is estimated.
                return loss
            # The library divides by the number of parts afterwards.
            return loss * (_rows(inputs) * self.current_gradient_accumulation_steps / self.rows_in_step)

    return ByRows


def _rows(batch: Mapping[str, Any]) -> int:
    return len(next(iter(batch.values())))


def train_in_parts(
    train: Callable[[TrainingOptions], TrainingRun],
    options: TrainingOptions,
    expected: int,
    tokens: int,
    note: Callable[[str], None],
) -> TrainingRun:
    """Train with batches in the largest equal parts that memory holds, each at most half of one that did not fit.

    Args:
        train: Trains from the newest checkpoint on.
        options: Those of the training.
        expected: Rows that memory should hold, from `rows_expected`.
        tokens: Those of the longest row.
        note: Called with a line where a batch is split.

    Raises:
        UserError: memory does not hold a single row.
    """
    batch = options.rows_per_batch
    part = parts_of(batch, expected)

    def explain(rows: int, fit: str) -> None:
        note(f"note: batch of {batch} as {batch // part} x {part}: {rows} rows of {tokens} tokens {fit} in memory")

    if part < batch:
        explain(batch, "would not fit")
    while True:
        try:
            return train(split(options, part))
        except Exception as e:
            if not out_of_memory(e):
                raise
            drop_tensors(e)
        release_memory()
        if part == 1:
            what = f"training on a row of {tokens} tokens does not fit in memory"
            raise UserError(f"{what}; shorten the row, set `gradient_checkpointing: true` or free memory")
        tried, part = part, parts_of(batch, part // 2)
        explain(tried, "did not fit")


def rows_expected(trainer: Any, lengths: Sequence[int], batch: int, free: int) -> int:
    """Return how many of the longest rows, up to `batch`, `free` bytes should hold for the backward pass.

    A processor needs the estimate: where a GPU refuses what it cannot hold, Linux grants it, and kills the process.
    """
    data, kept = trainer.train_dataset, list[int]()
    places = sorted(range(len(data)), key=lambda n: -lengths[n]) if len(data) == len(lengths) else range(len(data))
    two = [data[places[n % len(places)]] for n in range(2)]
    # A trainer notes figures of every batch, which the first log would take for figures of the training.
    metrics = copy.deepcopy(getattr(trainer, "_metrics", None))
    with torch.random.fork_rng():
        with apart(trainer):
            if not fits(lambda rows: kept.extend(_bytes_kept(trainer, rows[:n]) for n in (1, 2)), two):
                return 0
        rows_apart = in_rows_apart(trainer, two)
    if metrics is not None:
        trainer._metrics = metrics
    states = STATE_BYTES * sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    room = (SHARE * free - states) / max(1, kept[1] - kept[0])
    return max((n for n in range(1, batch + 1) if rows_apart(n) <= room), default=0)


def _bytes_kept(trainer: Any, rows: Sequence[Any]) -> int:
    """Return the bytes of all tensors that a forward pass keeps for the backward pass."""
    kept = dict[int, torch.UntypedStorage]()

    def keep(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage

    trainer.model.train()
    if trainer.args.gradient_checkpointing:
        # The trainer does so itself only when it trains.
        trainer.model.gradient_checkpointing_enable()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda _: torch.empty(0)), trainer.accelerator.autocast():
        trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    return sum(storage.nbytes() for storage in kept.values())
