"""Fit batches of a local model into memory: bound them by what is free, and halve those that do not fit."""

import ctypes
import gc
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch

from crossover.models.source import to_stderr

R = TypeVar("R")

SHARE = 0.6
"""Part of the free memory that a batch may take by its estimate; the rest covers what the estimate leaves out."""

MOST_TOKENS = {"cpu": 16_384, "mps": 16_384}
"""Most padded tokens of a batch by type of device. On a processor SmolLM2-135M reads as fast in batches of 8,000 tokens
as in those of 16,000 and 24,000."""

MOST_TOKENS_GPU = 262_144
"""With these, tensors of a model 8,192 wide have 2**31 elements, which is as far as 32-bit indexes of kernels reach."""

CGROUPS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Folder of cgroups of version 2 and of version 1, its files with the limit and the bytes in use, and the field of
`memory.stat` with the part of these that can be reclaimed."""

TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError of torch says when memory ran out: CUDA and MPS, its CPU allocator on Linux and Windows, C++."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or in this process."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS))


def drop_tensors(error: BaseException) -> None:
    """Let the tracebacks of an error and of its causes refer to no variables, which would keep tensors alive."""
    step = error.__traceback__
    while step is not None:
        try:
            step.tb_frame.clear()
        except RuntimeError:
            # This call has not ended, so that its variables cannot be cleared, and it stands before those that have.
            error.__traceback__ = step.tb_next
        step = step.tb_next
    for earlier in (error.__cause__, error.__context__):
        if earlier is not None:
            drop_tensors(earlier)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors on a device can take; for a processor within the limit of its cgroup."""
    if device.type == "cuda":
        # Blocks that torch has freed but not returned can be used again.
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reusable
    available = int(psutil.virtual_memory().available)
    left = left_in_cgroup()
    return available if left is None else min(available, left)


def left_in_cgroup(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes left under the memory limit of this container, None where none can be read."""
    for folder, limit, used, reclaimable in CGROUPS:
        try:
            most, now, stat = ((root / folder / name).read_text() for name in (limit, used, "memory.stat"))
        except OSError:
            continue
        if most.strip() == "max":
            return None
        cached = dict(line.split() for line in stat.splitlines()).get(reclaimable, "0")
        return max(0, int(most) - int(now) + int(cached))
    return None


class Size(NamedTuple):
    """The size of a batch."""

    rows: int
    prompt: int
    """Tokens of the longest prompt, after the shared prefix."""
    answer: int
    """Most tokens of an answer."""
    prefix: int = 0
    """Tokens of the shared prefix."""

    @property
    def tokens(self) -> int:
        """Return the padded tokens of prompts and answers."""
        return self.rows * (self.prompt + self.answer)


class BatchBound:
    """Bound the batches of one model by the memory that is free, and by what did not fit before."""

    def __init__(self, model: Any, most_tokens: int | None = None) -> None:
        """Read the sizes of `model`; `most_tokens` replaces the most padded tokens for its device."""
        self.device: torch.device = model.device
        self.most_tokens = most_tokens or MOST_TOKENS.get(self.device.type, MOST_TOKENS_GPU)
        self.most_bytes: int | None = None
        """Estimate of the largest batch that may be tried after one did not fit; None until then."""
        config = model.config.get_text_config()
        shape, size = config.to_dict(), model.dtype.itemsize
        hidden, heads = config.hidden_size, config.num_attention_heads
        head = shape.get("head_dim") or hidden // heads
        inner = shape.get("intermediate_size") or 4 * hidden
        # Keys and values of every layer, and once more those of the layer that a step is being appended to.
        states = 2 * (shape.get("num_key_value_heads") or heads) * head * size
        self._token: int = (config.num_hidden_layers + 1) * states
        # Residual and norm, in float32 besides; then either attention's six tensors or the four of the feed-forward.
        self._read: int = hidden * (2 * size + 8) + max(6 * heads * head, 4 * inner) * size
        # A mask of truth values, and the same as numbers.
        self._pair: int = 2 + size
        # With a prefix, a GPU holds the float32 scores of all heads three times (models/prefix.py).
        self._score: int = 12 * heads if self.device.type == "cuda" else 0
        # Logits as they come, in float32, and twice more where a grammar forbids tokens.
        self._row: int = config.vocab_size * (size + 12)

    def estimate(self, size: Size) -> int:
        """Return the bytes that a batch takes at its peak, beside the weights and the shared prefix."""
        seen = size.prompt + size.prefix
        scores = self._score * seen if size.prefix else 0
        read = size.prompt * (self._read + self._pair * size.prompt + scores)
        return int(size.tokens * self._token + size.rows * (read + self._row))

    def batches(self, rows: Sequence[tuple[int, int]], prefix: int = 0) -> Iterator[list[int]]:
        """Yield positions of rows of similar length, as many at a time as fit by the estimate, at least one.

        `rows` are pairs of the tokens of a prompt, after a shared prefix of `prefix` tokens, and of its answer.
        """
        batch, size, limit = list[int](), Size(0, 0, 0, prefix), 0
        for n in sorted(range(len(rows)), key=lambda n: sum(rows[n])):
            prompt, answer = rows[n]
            larger = Size(len(batch) + 1, max(size.prompt, prompt), max(size.answer, answer), prefix)
            if batch and (larger.tokens > self.most_tokens or self.estimate(larger) > limit):
                yield batch
                batch, larger = [], Size(1, prompt, answer, prefix)
            if not batch:
                limit = self._limit()
            batch.append(n)
            size = larger
        if batch:
            yield batch

    def lower(self, size: Size) -> None:
        """Try no batch larger than half of this one again, since it did not fit."""
        if self.most_bytes is None:
            prompts = f"{size.rows} prompts of {size.prefix + size.prompt} tokens"
            to_stderr(f"a batch of {prompts} does not fit in memory; it is answered in smaller ones, as are later ones")
        half = self.estimate(size._replace(rows=(size.rows + 1) // 2))
        self.most_bytes = min(half, self.most_bytes or half)

    def refusal(self, size: Size) -> str:
        """Return the line that says why a lone prompt cannot be answered, and what helps."""
        free = free_bytes(self.device) / 1e9
        return (
            f"a prompt of {size.prefix + size.prompt} tokens with {size.answer} for the answer does not fit in memory "
            f"({free:.1f} GB free on {self.device}); shorten the prompt, lower `max_tokens` or free memory"
        )

    def _limit(self) -> int:
        free = int(SHARE * free_bytes(self.device))
        return free if self.most_bytes is None else min(free, self.most_bytes)


def in_halves(
    rows: Sequence[R],
    answer: Callable[[Sequence[R]], None],
    unanswered: Callable[[R], bool],
    make_room: Callable[[Sequence[R]], bool],
) -> None:
    """Call `answer` with all rows; where memory runs out, with the halves of those that are still unanswered.

    `make_room` is called with every batch that did not fit, and returns whether it freed memory: only then is a
    single row tried again.
    """
    waiting = deque([rows])
    while waiting:
        batch = waiting.popleft()
        if fits(answer, batch):
            continue
        again = make_room(batch) or len(batch) > 1
        release_memory()
        left = [r for r in batch if unanswered(r)] if again else []
        half = (len(left) + 1) // 2
        waiting.extendleft(part for part in (left[half:], left[:half]) if part)


def release_memory() -> None:
    """Collect tensors that refer to each other, and return the blocks that no tensor uses, of a GPU and of the heap."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Return to the system what was freed on the heap.

    The GNU C library keeps it, blocks of up to 32 MB, for the thread that freed it: where tensors have ever new sizes,
    a process grows to many times of what it uses.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def fits(answer: Callable[[Sequence[R]], None], batch: Sequence[R]) -> bool:
    """Call `answer`, and return whether memory sufficed; if not, nothing refers to its tensors any more."""
    try:
        answer(batch)
    except Exception as e:
        if not out_of_memory(e):
            raise
        drop_tensors(e)
        return False
    return True
