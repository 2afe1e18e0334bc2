"""Serve a classification head on a local model: from the states of the prompt to the text of a label."""

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from dspy import lm15
from safetensors.torch import load_file, save_file

from crossover.models.errors import UserError
from crossover.models.local import LocalEngine
from crossover.models.memory import Size, drop_tensors, in_halves
from crossover.models.prompt import messages_of
from crossover.models.token_engine import BASE


def pooled(model: Any, rows: Sequence[Sequence[int]], pooling: str) -> torch.Tensor:
    """Return one state of the last layer per row: that of its last token, or the mean of all; shape (rows, width).

    Gradients flow. Rows are padded on the right, which a causal model's states do not see.
    """
    from peft import PeftModel

    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    device = causal.device
    lengths = torch.tensor([len(r) for r in rows], device=device)
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long, device=device)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = torch.tensor(list(row), device=device)
    mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    states: torch.Tensor = causal.base_model(
        input_ids=ids, attention_mask=mask.long(), use_cache=False
    ).last_hidden_state.float()
    if pooling == "mean":
        return (states * mask[:, :, None]).sum(1) / lengths[:, None]
    return states[torch.arange(len(rows), device=device), lengths - 1]


class HeadEngine:
    """Answer DSPy requests with the best label of a linear head; requests that wait are answered in one batch."""

    local, inner = True, None
    supported_params, supports_response_schema = frozenset[str](), False

    def __init__(
        self,
        engine: LocalEngine,
        weight: torch.Tensor,
        bias: torch.Tensor,
        answers: Sequence[str],
        *,
        pooling: str,
        adapter: str = BASE,
    ) -> None:
        """Read the states of `engine` with its adapter; `answers` are the labels as the prompt format writes them."""
        self.engine, self.weight, self.bias, self.answers = engine, weight.float(), bias.float(), list(answers)
        self.pooling, self.adapter = pooling, adapter
        self.context, self.tokenizer, self.remarks = engine.context, engine.tokenizer, engine.remarks
        self._waiting: list[tuple[list[int], Future[int]]] = []
        self._arriving, self._turn = threading.Lock(), threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeadEngine":
        """Return itself: copies of a program share the model."""
        return self

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the token ids of the prompt for the local model."""
        return self.engine.encode(messages)

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        """Return the length of the prompt in tokens."""
        return len(self.encode(messages))

    @property
    def sha256(self) -> str:
        """Return the hash of the head's weights, its labels, and the base and adapter that it reads."""
        digest = hashlib.sha256(f"{self.engine.sha256} {self.adapter} {self.pooling} {self.answers}".encode())
        for tensor in (self.weight, self.bias):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def states(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the pooled states of the rows, on the CPU in float32.

        Raises:
            UserError: one of the rows does not fit in memory by itself.
        """
        by_row: dict[int, torch.Tensor] = {}
        bound = self.engine.bound

        def read(batch: Sequence[int]) -> None:
            with self.engine._lock, torch.inference_mode():
                self.engine.use(self.adapter)
                states = pooled(self.engine.model, [rows[n] for n in batch], self.pooling).cpu()
            by_row.update(zip(batch, states, strict=True))

        def make_room(batch: Sequence[int]) -> bool:
            size = Size(len(batch), max(len(rows[n]) for n in batch), 0)
            with self.engine._lock:
                freed = self.engine.prefixes.clear()
            if size.rows > 1:
                bound.lower(size)
            elif not freed:
                raise UserError(bound.refusal(size))
            return freed

        for numbers in bound.batches([(len(r), 0) for r in rows]):
            in_halves(numbers, read, lambda n: n not in by_row, make_room)
        return torch.stack([by_row[n] for n in range(len(rows))])

    def choose(self, states: torch.Tensor) -> list[int]:
        """Return the best label of each state."""
        return [int(n) for n in (states @ self.weight.T + self.bias).argmax(1)]

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request with the text of a label; no token is generated."""
        ids = self.encode(messages_of(request))
        if len(ids) > self.context:
            raise lm15.ContextLengthError(f"prompt of {len(ids)} tokens exceeds the model's context of {self.context}")
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(self.answers[self._label(ids)]),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=len(ids), output_tokens=0, total_tokens=len(ids)),
        )

    def _label(self, ids: list[int]) -> int:
        """Return the label of a prompt; the first thread to get its turn answers for all that wait."""
        mine: Future[int] = Future()
        with self._arriving:
            self._waiting.append((ids, mine))
        with self._turn:
            if not mine.done():
                with self._arriving:
                    batch, self._waiting = self._waiting, []
                self._answer(batch)
        return mine.result()

    def _answer(self, batch: list[tuple[list[int], "Future[int]"]]) -> None:
        try:
            for (_, answer), label in zip(batch, self.choose(self.states([ids for ids, _ in batch])), strict=True):
                answer.set_result(label)
        except UserError as e:
            if len(batch) == 1:
                batch[0][1].set_exception(e)
                return
            # Only the prompt that does not fit by itself may fail for it.
            for one in batch:
                self._answer([one])
        except Exception as e:
            drop_tensors(e)
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(e)

    def save(self, folder: Path) -> None:
        """Write the head; the caller saves the base, or its adapter."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, folder / "head.safetensors")
        facts = {"answers": self.answers, "pooling": self.pooling, "base": self.engine.sha256}
        (folder / "head.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, engine: LocalEngine, *, adapter: str = BASE) -> "HeadEngine":
        """Return the head of a folder on the base that it was trained on.

        Raises:
            ValueError: the head belongs to another base.
        """
        facts = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        if facts["base"] != engine.sha256:
            raise ValueError(f"the head of {folder} was trained on a base of hash {facts['base'][:12]}, not this one")
        tensors = load_file(folder / "head.safetensors")
        return cls(
            engine, tensors["weight"], tensors["bias"], facts["answers"], pooling=facts["pooling"], adapter=adapter
        )
