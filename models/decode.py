"""Decode a batch of prompts that may share a prefix; each row ends by itself."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from crossover.models.constrained import CompiledGrammar, Constraint, forbidden_tokens
from crossover.models.prefix import ATTENTION, Prefix, attending_to, causal_mask, extend, register_attention


@dataclass(frozen=True)
class Prompt:
    """One row of a batch: its tokens, and how its answer is decoded."""

    ids: Sequence[int] | np.ndarray
    """Token ids after the shared prefix, the grammar's opening at the end; at least one."""
    max_tokens: int
    """Most tokens that the model chooses; those that a grammar forces at the beginning and the end are not counted."""
    temperature: float = 0.0
    """0 decodes greedily."""
    seed: int = 0
    """Seed of sampling: with one per row, an answer does not depend on the rows beside it."""
    grammar: CompiledGrammar | None = None
    """What the answer is held to; None allows any."""
    on_token: Callable[[int], None] | None = None
    """Called with each new token id as it comes."""


class Row:
    """A row that is being decoded, in one batch or, if that breaks off, in several after each other."""

    def __init__(self, number: int, prompt: Prompt) -> None:
        self.number, self.prompt = number, prompt
        self.random = torch.Generator().manual_seed(prompt.seed)
        self.constraint = None if prompt.grammar is None else Constraint(prompt.grammar)
        self.new: list[int] = []
        self._append(prompt.grammar.opening if prompt.grammar else [])
        self.left = prompt.max_tokens

    def read(self) -> Prompt:
        """Return the prompt with the new tokens at its end, for a batch that goes on after them."""
        opening = len(self.prompt.grammar.opening) if self.prompt.grammar else 0
        if len(self.new) == opening:
            return self.prompt
        return replace(self.prompt, ids=[*self.prompt.ids, *self.new[opening:]])

    def add(self, logits: torch.Tensor, likeliest: int) -> None:
        """Append the next token, the likeliest or a sample; `logits` has shape (vocabulary,)."""
        token = self._draw(logits) if self.prompt.temperature > 0 else likeliest
        self._append([token])
        self.left -= 1
        if self.constraint is not None:
            self._append(self.constraint.advance(token))

    def ended(self, stop: frozenset[int]) -> bool:
        """Return whether the answer is complete, or as long as it may be."""
        complete = bool(stop & set(self.new[-1:])) if self.constraint is None else self.constraint.ended
        return complete or self.left <= 0

    def _append(self, tokens: Sequence[int]) -> None:
        self.new.extend(tokens)
        if self.prompt.on_token is not None:
            for token in tokens:
                self.prompt.on_token(token)

    def _draw(self, logits: torch.Tensor) -> int:
        probabilities = (logits.cpu() / self.prompt.temperature).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self.random))


class Batch:
    """A batch of prompts, with the model's states of what was read so far."""

    def __init__(self, model: Any, prefix: Prefix | None, prompts: Sequence[Prompt]) -> None:
        """Read the prompts, all at once, padded on the left."""
        self.model, self.prefix = model, prefix
        self.device = model.device
        self.cache = DynamicCache(config=model.config)
        start = 0 if prefix is None else len(prefix)
        lengths = [len(p.ids) for p in prompts]
        width = max(lengths)
        self.pads = torch.tensor([width - n for n in lengths], device=self.device)
        ids = torch.zeros((len(prompts), width), dtype=torch.long, device=self.device)
        for r, p in enumerate(prompts):
            ids[r, width - len(p.ids) :] = torch.tensor(p.ids)
        positions = (torch.arange(width, device=self.device) - self.pads.unsqueeze(1)).clamp(min=0) + start
        self.ends = torch.tensor(lengths, device=self.device) + start
        self.width = width
        self.logits = self._forward(ids, positions)
        """Of the next token, float32, shape (rows, vocabulary)."""

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        new = ids.shape[1]
        if self.prefix is not None and new == self.width:
            mask = causal_mask(self.width, self.pads.tolist(), self.device)
        else:
            column = torch.arange(self.width, device=self.device)
            mask = column >= self.pads.unsqueeze(1)
            # Without a prefix the model builds its own mask: it may have sliding windows that this file ignores.
            mask = mask if self.prefix is None else mask.view(len(ids), 1, 1, self.width)
        with attending_to(self.prefix):
            out = self.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def push(self, tokens: Sequence[int]) -> None:
        """Append one token to each row and compute the logits after it."""
        self.width += 1
        ids = torch.tensor(list(tokens), device=self.device).unsqueeze(1)
        self.logits = self._forward(ids, self.ends.unsqueeze(1))
        self.ends = self.ends + 1

    def forbid(self, constraints: Mapping[int, Constraint]) -> None:
        """Set the logits of tokens that a row's constraint does not allow to minus infinity; keys are rows."""
        if constraints:
            rows = torch.tensor(list(constraints), device=self.device)
            mask = forbidden_tokens(list(constraints.values()), self.logits.shape[-1]).to(self.device)
            self.logits[rows] = self.logits[rows].masked_fill(mask, -torch.inf)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(list(rows), device=self.device)
        self.cache.batch_select_indices(index)
        self.pads, self.ends, self.logits = self.pads[index], self.ends[index], self.logits[index]


def decode(
    model: Any, prefix: Prefix | None, rows: Sequence[Row], stop: frozenset[int]
) -> Iterator[tuple[int, list[int]]]:
    """Yield (row number, new token ids) as each row ends: with a token of `stop`, or after its `max_tokens`.

    If an error breaks this off, the rows that have not been yielded can be decoded in other batches: none of their
    tokens is drawn or passed to `on_token` a second time.
    """
    # The error may have come after a row's last token, while another row's was drawn.
    yield from ((r.number, r.new) for r in rows if r.ended(stop))
    rows = [r for r in rows if not r.ended(stop)]
    if not rows:
        return
    batch = Batch(model, prefix, [r.read() for r in rows])
    live = list(range(len(rows)))
    """Position in the batch of each of `rows`."""
    while rows:
        batch.forbid({k: r.constraint for k, r in zip(live, rows, strict=True) if r.constraint is not None})
        greedy = batch.logits.argmax(-1).tolist()
        for k, row in zip(live, rows, strict=True):
            row.add(batch.logits[k], greedy[k])
        ended = [r.ended(stop) for r in rows]
        yield from ((r.number, r.new) for r, e in zip(rows, ended, strict=True) if e)
        rows, live = (
            [r for r, e in zip(rows, ended, strict=True) if not e],
            [k for k, e in zip(live, ended, strict=True) if not e],
        )
        if not rows:
            return
        size = len(batch.pads)
        if len(rows) <= size // 2:
            batch.keep(live)
            size, live = len(rows), list(range(len(rows)))
        # Dropping rows copies the cache: finished rows go on with a token that nobody reads until half have finished.
        tokens = [0] * size
        for k, row in zip(live, rows, strict=True):
            tokens[k] = row.new[-1]
        batch.push(tokens)


@contextlib.contextmanager
def in_own_precision(model: Any) -> Iterator[None]:
    """Let the model compute in the precision of its weights inside the block.

    A trainer that computes in bfloat16 casts in a context of its own, and in a forward that it puts in place of the
    class's. Where two ways to compute are compared, that rounding would pass for a difference.
    """
    casting = vars(model).pop("forward", None)
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        if casting is not None:
            model.forward = casting


def can_share(model: Any) -> bool:
    """Return whether the model can read a shared prefix: full attention in all layers, and the same logits.

    As a side effect the model's attention becomes that of models/prefix.py, which is SDPA while no prefix is active.
    """
    shape = model.config.get_text_config().to_dict()
    windowed = shape.get("use_sliding_window", True) and shape.get("sliding_window")
    if windowed or set(shape.get("layer_types") or ["full_attention"]) != {"full_attention"}:
        return False
    ids = [k % model.config.vocab_size for k in range(7, 7 + 12 * 31, 31)]
    was_training = model.training
    model.eval()
    with torch.inference_mode(), in_own_precision(model):
        plain = model(torch.tensor([ids], device=model.device)).logits[0, -1].float()
        try:
            register_attention()
            model.set_attn_implementation(ATTENTION)
            shared = Batch(model, extend(model, None, ids[:8], ""), [Prompt(ids[8:], 1)]).logits[0]
        except (ValueError, AttributeError, TypeError):
            return False
        finally:
            model.train(was_training)
    # Half precision rounds the two ways differently, by a tenth of the deviation; a wrong mask is off by several.
    tolerance = 0.02 if model.dtype == torch.float32 else 0.5
    return bool((plain - shared).abs().max() <= tolerance * plain.std())
