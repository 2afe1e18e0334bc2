"""Serve a Hugging Face causal language model in this process as a DSPy engine, with LoRA adapters on one base."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crossover.models.adapters import attach, switch
from crossover.models.batching import Job, decode_jobs, failing, groups_by_prefix
from crossover.models.decode import can_share
from crossover.models.device import load_weights
from crossover.models.memory import BatchBound, drop_tensors, out_of_memory
from crossover.models.prefix import Prefix, PrefixStore, extend
from crossover.models.token_engine import BASE, IN_MEMORY, TokenEngine, Weights
from crossover.models.weights import folder_sha256
from crossover.models.worker import Worker

WORTH_SHARING = 256
"""Tokens that a shared prefix must save in one batch of requests; fewer are lost again by splitting the batch."""


class LocalEngine(TokenEngine):
    """Answer DSPy requests with a loaded model; requests of many threads are answered in batches.

    One worker thread owns the model, so that adapters can be switched without a race.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: Weights = IN_MEMORY,
        *,
        batch_tokens: int | None = None,
        prefix_bytes: int = 1 << 30,
        in_training: bool = False,
    ) -> None:
        """Serve `model` on the device it is on.

        Free memory bounds a batch, and so do `batch_tokens` padded tokens, without a shared prefix; None stands for the
        most that help on the device. `prefix_bytes` bounds the states kept for prompts that begin alike, and 0 turns
        that off. A model `in_training` is served as it is, its new adapter included: switching adapters would freeze
        the one that is trained.
        """
        generation: Any = model.generation_config
        super().__init__(tokenizer, model.config, generation.eos_token_id, weights)
        self.in_training = in_training
        self.model: Any = model
        self.bound = BatchBound(model, batch_tokens)
        self.prefixes = PrefixStore(prefix_bytes if can_share(model) else 0)
        self._lock = threading.Lock()
        """Held while the model runs."""
        self._worker = Worker[Job](self._answer)
        self._active: str | None = BASE
        """The adapter that the model runs with; None when a switch may have broken off."""

    @classmethod
    def load(cls, folder: str | Path, *, trust_remote_code: bool = False) -> Self:
        """Load weights (safetensors only) and tokenizer from a folder or a hub id."""
        model, tokenizer = load_weights(folder, trust_remote_code=trust_remote_code)
        here = Path(folder).is_dir()
        place = Path(folder) if here else Path(str(model.config._name_or_path))
        sha256 = folder_sha256(Path(folder)) if here else str(model.config._commit_hash)
        return cls(model, tokenizer, Weights(place, sha256, trust_remote_code))

    def with_weights(self, folder: Path) -> Self:
        """Load whole weights beside these."""
        return self.load(folder, trust_remote_code=self.trust_remote_code)

    def add_adapter(self, folder: Path) -> str:
        """Attach a LoRA adapter to the base."""
        name = folder_sha256(folder)[:12]
        with self._lock:
            self.model, self._active = attach(self.model, folder, name), None
        return name

    def token_logprobs(self, ids: Sequence[int], last: int, adapter: str = BASE) -> torch.Tensor:
        """Return the log-probability of each of the `last` tokens of a text; see `TokenEngine`."""
        with self._lock, torch.inference_mode():
            self.use(adapter)
            row = torch.tensor([list(ids)], device=self.model.device)
            # Logits of all tokens, of the width of the vocabulary, would be most of the memory.
            logits = self.model(row, logits_to_keep=last + 1).logits[0, -last - 1 : -1].float()
            return -torch.nn.functional.cross_entropy(logits, row[0, -last:], reduction="none").cpu()

    def close(self) -> None:
        """Stop the worker; a later request starts a new one."""
        self._worker.close()

    def _expect(self, jobs: int) -> None:
        self._worker.expect(jobs)

    def _put(self, job: Job) -> None:
        self._worker.put(job)

    def _answer(self, jobs: list[Job]) -> None:
        """Answer the requests: those that begin alike share the states of that beginning, the rest are batched."""
        apart: dict[str, list[Job]] = {}
        for group, shared in groups_by_prefix(jobs):
            with failing(group), self._lock, torch.inference_mode():
                if not self._answer_sharing(group, shared):
                    apart.setdefault(group[0].adapter, []).extend(group)
        for adapter, rest in apart.items():
            with failing(rest), self._lock, torch.inference_mode():
                self.use(adapter)
                decode_jobs(self, rest, None)

    def _answer_sharing(self, group: list[Job], shared: int) -> bool:
        """Answer requests on the states of the beginning that they share; return False where that does not pay."""
        self.use(group[0].adapter)
        try:
            prefix = self._prefix(group, shared)
        except Exception as e:
            if not out_of_memory(e):
                raise
            drop_tensors(e)
            self.prefixes.clear()
            prefix = None
            for job in group:
                job.cached = 0
        if prefix is not None:
            decode_jobs(self, group, prefix)
        return prefix is not None

    def _prefix(self, group: list[Job], shared: int) -> Prefix | None:
        """Return the states of the beginning that the group shares, or None when they would save too little."""
        if self.prefixes.max_bytes == 0:
            return None
        ids, adapter = group[0].ids[:shared], group[0].adapter
        prefix = self.prefixes.longest(ids, adapter)
        have = 0 if prefix is None else len(prefix)
        # A lone request's states are kept for the next one; they cost nothing but memory.
        saved = shared - have if len(group) == 1 else (len(group) - 1) * (shared - have)
        if saved < WORTH_SHARING and have * len(group) < WORTH_SHARING:
            return None
        for n, job in enumerate(group):
            job.cached = have if n == 0 or saved < WORTH_SHARING else shared
        if saved >= WORTH_SHARING:
            prefix = extend(self.model, prefix, ids.tolist(), adapter)
            self.prefixes.keep(prefix)
        return prefix

    def use(self, adapter: str) -> None:
        """Activate an adapter, or none for an empty name; the caller holds the lock."""
        if adapter != self._active and not self.in_training:
            # Unknown until the switch is done: one that breaks off must not be taken for either adapter.
            self._active = None
            switch(self.model, adapter)
            self._active = adapter
