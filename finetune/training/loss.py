"""Compute the completion loss of a batch without computing anything twice or for nothing.

Two savings over TRL's trainer, with the same loss and gradients up to rounding:

- Only positions that carry a label pass through the language-model head. TRL 1.16 does that where Triton runs, and not
  on a CPU.
- Rows of a task begin alike: instructions, labels, the first words of the layout. What all rows of a batch begin with
  is computed once: the batch becomes one row, the shared beginning and then every row's own part, which sees the
  beginning and itself. Gradients of the beginning add up as they would over its copies.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from trl import SFTTrainer

from crossover.models.decode import in_own_precision
from crossover.models.prefix import shared_tokens

NO_LABEL = -100
TOKENS, LABELS = 64, 16
"""Joined rows have a multiple of so many tokens and labels: torch keeps kernels for each new shape, and the C library
the blocks of the old ones, so that a process grew by 17 to 80 MB a step."""
SAME_LOSS = 1e-3
"""Relative difference by which the two ways may miss each other in the first batch; float32 leaves about 1e-6."""


class Joined(NamedTuple):
    """A batch as one row."""

    inputs: dict[str, torch.Tensor]
    """`input_ids` and `position_ids` of shape (1, tokens), `attention_mask` of shape (1, 1, tokens, tokens)."""
    columns: torch.Tensor
    """Columns whose next token is labelled."""
    targets: torch.Tensor
    """That next token, for each of the columns; NO_LABEL for those that only fill up."""


class CompletionLossTrainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped
    """SFTTrainer that computes shared beginnings once, and the head where a label stands."""

    joins: bool | None = None
    """Whether the model gives the same loss for joined rows; None until the first batch that is worth joining."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean negative log-likelihood of the labelled tokens; `Trainer` counts them over a whole step."""
        bare = self.accelerator.unwrap_model(model)
        joined = None if self.joins is False or _drops(bare) else join(inputs, _attention_share(bare))
        if joined is not None and self.joins is None:
            two = {name: rows[:2] for name, rows in inputs.items()}
            pair = join(two, 0.0)
            self.joins = pair is not None and same_loss(model, two, pair)
        total, outputs = joined_loss(model, joined) if joined and self.joins else padded_loss(model, inputs)
        labels = int((inputs["labels"][:, 1:] != NO_LABEL).sum())
        loss = total / (labels if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The tokens of all processes were counted, and torch takes the mean of the processes' gradients.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def join(inputs: dict[str, torch.Tensor], attention_share: float) -> Joined | None:
    """Return the batch as one row, or None where that would save nothing.

    Attention over the joined row costs more than over short ones: `attention_share` is its cost, for each token that is
    looked at, as a share of everything else that a token costs.
    """
    if set(inputs) != {"input_ids", "attention_mask", "labels"} or len(inputs["input_ids"]) < 2:
        return None
    ids, mask, labels = inputs["input_ids"], inputs["attention_mask"].bool(), inputs["labels"]
    lengths = mask.sum(1)
    if not bool((mask == (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])).all()):
        return None  # padded on the left
    # The column before the first label predicts it, and so belongs to its row.
    before_labels = int((labels != NO_LABEL).int().argmax(1).min()) - 1
    alike = (ids == ids[0]).all(0)[: max(0, before_labels)]
    shared = int(alike.int().cumprod(0).sum())
    if not shared or not _saves(shared + int((lengths - shared).sum()), len(ids), ids.shape[1], attention_share):
        return None
    own = mask.clone()
    own[:, :shared] = False
    rows, places = own.nonzero(as_tuple=True)
    start = torch.arange(shared, device=ids.device)
    # 0 marks the shared beginning, which everyone sees; pads at the end belong to the last row, and nobody sees them.
    owner = _padded(torch.cat([torch.zeros_like(start), rows + 1]), TOKENS, int(rows[-1]) + 1)
    position = _padded(torch.cat([start, places]), TOKENS, 0)
    sees = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
    sees &= torch.ones_like(sees).tril()
    following = torch.cat([labels, labels.new_full((len(labels), 1), NO_LABEL)], 1)[rows, places + 1]
    columns = (following != NO_LABEL).nonzero().squeeze(1)
    return Joined(
        {
            "input_ids": _padded(torch.cat([ids[0, :shared], ids[own]]), TOKENS, 0)[None],
            "position_ids": position[None],
            "attention_mask": sees[None, None],
        },
        _padded(columns + shared, LABELS, 0),
        _padded(following[columns], LABELS, NO_LABEL),
    )


def _padded(values: torch.Tensor, multiple: int, value: int) -> torch.Tensor:
    """Return the values, shape (n,), with as many more as make their number a multiple."""
    return torch.nn.functional.pad(values, (0, -len(values) % multiple), value=value)


def _saves(joined: int, rows: int, longest: int, attention_share: float) -> bool:
    """Return whether one row of `joined` tokens costs less than `rows` padded to the longest."""
    return joined * (1 + attention_share * joined) < rows * longest * (1 + attention_share * longest)


def joined_loss(model: Any, joined: Joined) -> tuple[torch.Tensor, Any]:
    """Return the sum of the negative log-likelihoods of a joined batch, and the model's outputs."""
    sees = joined.inputs["attention_mask"]
    # Eager attention adds its mask; every other kind takes one that is added, too.
    added = torch.zeros(sees.shape, device=sees.device).masked_fill(~sees, torch.finfo(torch.float32).min)
    outputs = model(**joined.inputs | {"attention_mask": added}, use_cache=False, logits_to_keep=joined.columns)
    logits = outputs.logits[0].float()
    loss = torch.nn.functional.cross_entropy(logits, joined.targets, ignore_index=NO_LABEL, reduction="sum")
    return loss, outputs


def padded_loss(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    """Return the sum of the negative log-likelihoods of a batch as it is, and the model's outputs."""
    labels = inputs["labels"][:, 1:]
    columns = (labels != NO_LABEL).any(0).nonzero().squeeze(1)
    rest = {k: v for k, v in inputs.items() if k != "labels"}
    outputs = model(**rest, use_cache=False, logits_to_keep=columns)
    logits, targets = outputs.logits.flatten(0, 1).float(), labels[:, columns].flatten()
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=NO_LABEL, reduction="sum"), outputs


def same_loss(model: Any, inputs: dict[str, Any], joined: Joined) -> bool:
    """Return whether the model gives a joined batch the same loss.

    It does not where attention has a window or positions that do not come from `position_ids`, or where a state runs
    through the row instead of attention. Bfloat16 alone would move the loss by more than `SAME_LOSS`.
    """
    with torch.no_grad(), in_own_precision(model):
        try:
            together = float(joined_loss(model, joined)[0])
        except (RuntimeError, TypeError, ValueError):  # a model that takes no such mask
            return False
        apart = float(padded_loss(model, inputs)[0])
    return abs(together - apart) <= SAME_LOSS * apart


@contextlib.contextmanager
def apart(trainer: Any) -> Iterator[None]:
    """Let the trainer join no rows inside the block."""
    joins, trainer.joins = getattr(trainer, "joins", False), False
    try:
        yield
    finally:
        trainer.joins = joins


def in_rows_apart(trainer: Any, longest: Sequence[Any]) -> Callable[[int], float]:
    """Return a function from the number of long rows in a batch to that of rows apart with as many tokens.

    Whether the trainer joins rows, and how many tokens are shared, is learnt from two of the longest and from what all
    rows begin with.
    """
    if not isinstance(trainer, CompletionLossTrainer):
        return float
    with torch.no_grad():
        trainer.compute_loss(trainer.model, trainer.data_collator(longest))
    # What the first and the last in order share, all between them share, too.
    ids = list(trainer.train_dataset["input_ids"]) if trainer.joins else []
    shared = shared_tokens(np.asarray(min(ids)), np.asarray(max(ids))) if ids else 0
    tokens, share = max(len(row["input_ids"]) for row in longest), _attention_share(trainer.model)

    def rows_apart(rows: int) -> float:
        joined = shared + rows * (tokens - shared)
        return joined / tokens if _saves(joined, rows, tokens, share) else float(rows)

    return rows_apart


def _drops(model: Any) -> bool:
    """Return whether the model drops states at random: copies of the beginning would each lose others."""
    return any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())


def _attention_share(model: Any) -> float:
    """Return what looking at one token costs, as a share of everything else that a token costs in the model.

    Two operations for a weight, and four for a layer and a width: scores and sums.
    """
    config = model.config.get_text_config()
    return float(2 * config.num_hidden_layers * config.hidden_size / model.num_parameters())


def trainer_for(model: Any) -> type[SFTTrainer]:
    """Return TRL's own trainer on CUDA, or for a model that cannot compute a part of the logits; else ours."""
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    return SFTTrainer if torch.cuda.is_available() or not keeps else CompletionLossTrainer
