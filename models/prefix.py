"""Share the key/value states of a common prompt prefix: computed once, held once, never copied into a batch.

Attention over a prefix and over a row's own tokens is computed apart and merged by the log-sum-exps, so that a batch
of B rows reads the prefix once (cascade attention; Juravsky et al., Hydragen, arXiv 2402.05099).
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "shared_prefix"
"""Name under which transformers finds the attention of this file."""

SHORT = 512
"""Tokens up to which a processor trains attention in float32, whatever else is in bfloat16: the backward pass of
torch's bfloat16 kernel takes 3.6 times as long for rows of 32 tokens, 2.2 times for 128, as long for 512."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The states of a prompt's first tokens under one adapter."""

    ids: np.ndarray
    """Token ids, shape (tokens,)."""
    adapter: str
    """States of one adapter are wrong under any other."""
    keys: tuple[torch.Tensor, ...]
    """A tensor for each layer, shape (1, key/value heads, tokens, head width)."""
    values: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the states."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def head(self, tokens: int) -> "Prefix":
        """Return the first tokens as views: a causal model's states do not depend on what follows."""
        return Prefix(
            self.ids[:tokens],
            self.adapter,
            tuple(k[:, :, :tokens] for k in self.keys),
            tuple(v[:, :, :tokens] for v in self.values),
        )


_active: ContextVar[Prefix | None] = ContextVar("active_prefix", default=None)


@contextlib.contextmanager
def attending_to(prefix: Prefix | None) -> Iterator[None]:
    """Let every attention layer that runs inside the context see the prefix before its own tokens."""
    token = _active.set(prefix)
    try:
        yield
    finally:
        _active.reset(token)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention's output (B, H, Q, D) and the log-sum-exp of its scores (B, H, Q)."""
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, float("-inf"))
    if query.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias, scale=scale
        )
        return out, lse
    scores = (query @ key.transpose(-1, -2)).float() * (scale or query.shape[-1] ** -0.5)
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(-1)
    return ((scores - lse.unsqueeze(-1)).exp().to(value.dtype) @ value), lse


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as SDPA does, and to the active prefix if any; the signature is that of transformers' interface."""
    prefix = _active.get()
    if prefix is None:
        short = query.requires_grad and query.device.type == "cpu" and query.shape[2] <= SHORT
        with torch.autocast("cpu", enabled=False) if short else contextlib.nullcontext():
            attended = [t.float() for t in (query, key, value)] if short else [query, key, value]
            out, _ = sdpa_attention_forward(module, *attended, attention_mask, scaling=scaling, **options)
        return out.to(value.dtype), None
    layer: Any = module.layer_idx
    b, h, q, d = query.shape
    kv_heads = key.shape[1]
    groups = h // kv_heads
    own, own_lse = _attend(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attention_mask, scaling
    )
    # All rows and all heads of a group ask the same keys: one product for each key/value head.
    folded = query.reshape(b, kv_heads, groups, q, d).permute(1, 2, 0, 3, 4).reshape(1, kv_heads, groups * b * q, d)
    seen, seen_lse = _attend(folded, prefix.keys[layer], prefix.values[layer], None, scaling)
    seen = seen.reshape(kv_heads, groups, b, q, d).permute(2, 0, 1, 3, 4).reshape(b, h, q, d)
    seen_lse = seen_lse.reshape(kv_heads, groups, b, q).permute(2, 0, 1, 3).reshape(b, h, q)
    share = torch.sigmoid(own_lse.float() - seen_lse.float()).unsqueeze(-1).to(own.dtype)
    return torch.lerp(seen.to(own.dtype), own, share).transpose(1, 2).contiguous(), None


def register_attention() -> None:
    """Make the attention of this file known to transformers; needed before the first model that uses it."""
    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def extend(model: Any, prefix: Prefix | None, ids: Sequence[int], adapter: str) -> Prefix:
    """Return the states of `ids`, which begin with those of `prefix`: only the rest is computed."""
    start = 0 if prefix is None else len(prefix)
    new = torch.tensor([list(ids[start:])], device=model.device)
    cache = DynamicCache()
    with attending_to(prefix):
        model(
            input_ids=new,
            position_ids=torch.arange(start, len(ids), device=model.device).unsqueeze(0),
            attention_mask=None if prefix is None else causal_mask(new.shape[1], [0], model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,  # the fewest: the logits of a prefix are not read
        )
    keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
    if prefix is not None:
        keys = [torch.cat([a, b], dim=2) for a, b in zip(prefix.keys, keys, strict=True)]
        values = [torch.cat([a, b], dim=2) for a, b in zip(prefix.values, values, strict=True)]
    return Prefix(np.asarray(ids), adapter, tuple(keys), tuple(values))


def causal_mask(tokens: int, pads: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the causal mask of a batch padded on the left, True where attention is allowed; (B, 1, tokens, tokens).

    A pad attends to itself: a row of nothing but minus infinity would turn into NaN and spread.
    """
    column = torch.arange(tokens, device=device)
    real = column >= torch.tensor(list(pads), device=device).unsqueeze(1)
    causal = column.unsqueeze(1) >= column
    return ((causal & real.unsqueeze(1)) | torch.eye(tokens, dtype=torch.bool, device=device)).unsqueeze(1)


def shared_tokens(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many leading token ids two prompts share."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


class Kept(NamedTuple):
    """States in a store."""

    owner: object
    brief: bool
    """Whether they are dropped where the context ends that they were kept in."""
    prefix: Prefix


class PrefixStore:
    """Prefixes within a bound of bytes; the least recently used is dropped first."""

    def __init__(self, max_bytes: int) -> None:
        """Keep at most `max_bytes` of states; 0 keeps nothing."""
        self.max_bytes = max_bytes
        self._owner: object = None
        self._brief = False
        self._kept: list[Kept] = []
        """Least recently used first."""

    @contextlib.contextmanager
    def belonging_to(self, owner: object, *, briefly: bool = False) -> Iterator[None]:
        """Find only the states of `owner` inside the context, and keep new ones for it, or only until its end."""
        outer = self._owner, self._brief
        self._owner, self._brief = owner, briefly
        try:
            yield
        finally:
            self._owner, self._brief = outer
            self._kept = [k for k in self._kept if not k.brief]

    def longest(self, ids: np.ndarray, adapter: str) -> Prefix | None:
        """Return the states of the longest known beginning of the prompt, at least one token, or None."""
        scored = [
            (shared_tokens(k.prefix.ids, ids), n)
            for n, k in enumerate(self._kept)
            if k.owner == self._owner and k.prefix.adapter == adapter
        ]
        tokens, n = max(scored, default=(0, 0))
        if tokens == 0:
            return None
        self._kept.append(self._kept.pop(n))
        return self._kept[-1].prefix.head(tokens)

    def keep(self, prefix: Prefix) -> None:
        """Add a prefix in place of those it contains, unless it is too large by itself."""
        if prefix.nbytes > self.max_bytes:
            return
        new = Kept(self._owner, self._brief, prefix)
        self._kept = [k for k in self._kept if not _replaces(new, k)] + [new]
        while sum(p.nbytes for p in self) > self.max_bytes:
            self._kept.pop(0)

    def __iter__(self) -> Iterator[Prefix]:
        """Iterate over the prefixes of all owners, the least recently used first."""
        return (k.prefix for k in self._kept)

    def clear(self) -> bool:
        """Drop all prefixes, to free memory, and return whether there were any."""
        had_any = len(self._kept) > 0
        self._kept.clear()
        return had_any


def _replaces(new: Kept, old: Kept) -> bool:
    """Return whether all that the old states are good for, the new ones are."""
    alike = (new.owner, new.brief, new.prefix.adapter) == (old.owner, old.brief, old.prefix.adapter)
    return alike and shared_tokens(old.prefix.ids, new.prefix.ids) == len(old.prefix)
