"""Serve a Hugging Face causal language model in this process as a DSPy engine, with LoRA adapters on one base."""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dspy import lm15
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crossover.models.adapters import attach, switch
from crossover.models.ahead import SentRequest, Turns
from crossover.models.batching import Job, decode_jobs, failing, groups_by_prefix
from crossover.models.constrained import CompiledGrammar, Grammars
from crossover.models.decode import Prompt, can_share, stop_tokens
from crossover.models.device import load_weights
from crossover.models.encoding import PromptEncoder
from crossover.models.memory import BatchBound, drop_tensors, out_of_memory
from crossover.models.prefix import Prefix, PrefixStore, extend
from crossover.models.prompt import messages_of
from crossover.models.text import FALLBACK_TEMPLATE, answer_opening, mend_tokenizer, text_pieces
from crossover.models.think import without_thoughts
from crossover.models.weights import folder_sha256
from crossover.models.worker import Worker

BASE = ""
"""Adapter name of the untouched base."""

WORTH_SHARING = 256
"""Tokens that a shared prefix must save in one batch of requests; fewer are lost again by splitting the batch."""


class LocalEngine:
    """Answer DSPy requests with a loaded model; requests of many threads are answered in batches.

    One worker thread owns the model, so that adapters can be switched without a race.
    """

    local, inner = True, None
    supported_params, supports_response_schema = frozenset[str](), False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
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
        self.in_training = in_training
        self.model: Any = model
        self.tokenizer = tokenizer
        self.bound = BatchBound(model, batch_tokens)
        # Weights trained by this project are saved with the fallback template if they were trained in it.
        self.stop_at_line = tokenizer.chat_template in (None, FALLBACK_TEMPLATE)
        if self.stop_at_line:
            tokenizer.chat_template = FALLBACK_TEMPLATE
        self.remarks = mend_tokenizer(tokenizer)
        """What a reader of the results must know of how the model was asked."""
        self._encoder = PromptEncoder(tokenizer)
        self._opening = tokenizer.encode(answer_opening(tokenizer), add_special_tokens=False)
        """Token ids that training text holds before every answer, and that a grammar leaves no room for."""
        self.context = int(model.config.get_text_config().max_position_embeddings)
        self.folder = Path(".")
        """Where the weights were loaded from; a hub id as a path for those of the hub."""
        self.sha256 = ""
        self.trust_remote_code = False
        """Whether code that came with the weights may run, also where they are loaded again to be trained."""
        self.prefixes = PrefixStore(prefix_bytes if can_share(model) else 0)
        self.stop = stop_tokens(model, tokenizer, self.stop_at_line)
        self._lock, self._tokenizing = threading.Lock(), threading.Lock()
        """Held while the model runs, and while a prompt is prepared: prompts are prepared beside a running batch."""
        self._worker = Worker[Job](self._answer)
        self._active: str | None = BASE
        """The adapter that the model runs with; None when a switch may have broken off."""
        self._sampled: Counter[int] = Counter()
        self._grammars: Grammars | None = None

    @classmethod
    def load(cls, folder: str | Path, *, trust_remote_code: bool = False) -> "LocalEngine":
        """Load weights (safetensors only) and tokenizer from a folder or a hub id."""
        model, tokenizer = load_weights(folder, trust_remote_code=trust_remote_code)
        engine = cls(model, tokenizer)
        engine.trust_remote_code = trust_remote_code
        engine.folder = Path(folder) if Path(folder).is_dir() else Path(str(model.config._name_or_path))
        engine.sha256 = folder_sha256(Path(folder)) if Path(folder).is_dir() else str(model.config._commit_hash)
        return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> "LocalEngine":
        """Return itself: DSPy's optimizers copy programs, and must not copy the model with them."""
        return self

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the token ids of the prompt, up to the start of the answer."""
        with self._tokenizing:
            return self._encoder.encode(messages)

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        """Return the length of the prompt in tokens."""
        return len(self.encode(messages))

    def add_adapter(self, folder: Path) -> str:
        """Attach a LoRA adapter to the base and return its name, which holds the hash of its weights."""
        name = folder_sha256(folder)[:12]
        with self._lock:
            self.model, self._active = attach(self.model, folder, name), None
        return name

    def logits(self, ids: Sequence[int], adapter: str = BASE) -> torch.Tensor:
        """Return the float32 logits after a prompt, shape (vocabulary,)."""
        with self._lock, torch.inference_mode():
            self.use(adapter)
            out: torch.Tensor = self.model(torch.tensor([list(ids)], device=self.model.device), logits_to_keep=1).logits
            return out[0, -1].float().cpu()

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request; blocks until it is done."""
        sent = request.job if isinstance(request, SentRequest) else None
        job = sent or self._submit(request)
        new, reason = job.answer.result()
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(self._text(new)),
            finish_reason="length" if reason == "length" else "stop",
            usage=job.usage(new),
        )

    def send_ahead(self, request: lm15.Request, contents: Sequence[str]) -> list[SentRequest | None]:
        """Queue a request for each content of the last message; None stands for one that the context cannot hold.

        `complete` answers them without computing anything again.
        """
        with self._tokenizing:
            rows = self._encoder.encode_all(messages_of(request), contents)
        sent, jobs, shared = list[SentRequest | None](), list[Job](), request.messages[:-1]
        for content, ids in zip(contents, rows, strict=True):
            try:
                jobs.append(self._job(request, ids))
            except lm15.ContextLengthError:
                sent.append(None)
                continue
            messages: Any = Turns(shared, lm15.Message.user(content))
            sent.append(SentRequest(request.model, messages, request.system, config=request.config, job=jobs[-1]))
        self._worker.expect(len(jobs))
        for job in jobs:
            self._worker.put(job)
        return sent

    def stream(
        self, request: lm15.Request
    ) -> Iterator[lm15.StreamStartEvent | lm15.StreamDeltaEvent | lm15.StreamEndEvent]:
        """Answer one request piece by piece, as the tokens come."""
        tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        job = self._submit(request, on_token=tokens.put)
        job.answer.add_done_callback(lambda _: tokens.put(None))
        yield lm15.StreamStartEvent(model=request.model)
        sent = ""
        for piece in text_pieces(self.tokenizer, iter(tokens.get, None)):
            yield lm15.StreamDeltaEvent(lm15.TextDelta(piece, part_index=0))
            sent += piece
        new, reason = job.answer.result()
        if rest := self._text(new)[len(sent) :]:
            yield lm15.StreamDeltaEvent(lm15.TextDelta(rest, part_index=0))
        yield lm15.StreamEndEvent("length" if reason == "length" else "stop", job.usage(new))

    def _text(self, new: Sequence[int]) -> str:
        # DSPy takes an empty text for a broken call; a model that says nothing has answered, and wrongly.
        return without_thoughts(str(self.tokenizer.decode(new, skip_special_tokens=True))).strip() or " "

    def _submit(self, request: lm15.Request, on_token: Callable[[int], None] | None = None) -> Job:
        """Queue a request for the worker, which answers it in a batch with others."""
        # Counted before it is tokenized, so that the worker waits for it and answers it in the same batch.
        self._worker.expect(1)
        try:
            with self._tokenizing:
                [ids] = self._encoder.encode_all(messages_of(request))
            job = self._job(request, ids, on_token)
        except BaseException:
            self._worker.expect(-1)
            raise
        self._worker.put(job)
        return job

    def _job(self, request: lm15.Request, ids: np.ndarray, on_token: Callable[[int], None] | None = None) -> Job:
        grammar = self._grammar(request.config.response_format)
        if grammar is not None:
            # What template and grammar open every answer with is read with the prompt, instead of step by step.
            ids = np.concatenate([ids, np.asarray([*self._opening, *grammar.opening], np.int32)])
        max_tokens = int(request.config.max_tokens or 64)
        if len(ids) + max_tokens > self.context:
            raise lm15.ContextLengthError(
                f"prompt of {len(ids)} tokens and {max_tokens} for the answer exceed the model's context "
                f"of {self.context}"
            )
        _, _, adapter = request.model.partition("+")
        temperature = float(request.config.temperature or 0.0)
        seed = request.config.seed
        if seed is None:
            seed = self._repeat(request.model, ids) if temperature > 0 else 0
        return Job(Prompt(ids, max_tokens, temperature, int(seed), grammar, on_token), adapter)

    def _grammar(self, response_format: Mapping[str, Any] | None) -> CompiledGrammar | None:
        """Return the grammar that a request's format holds the answer to, None when any answer is allowed."""
        if not response_format or response_format.get("type") != "json_schema":
            return None
        with self._tokenizing:
            if self._grammars is None:
                width = int(self.model.config.get_text_config().vocab_size)
                ends = stop_tokens(self.model, self.tokenizer, at_line=False)
                self._grammars = Grammars(
                    self.tokenizer, width, ends, at_line=self.stop_at_line, opened=bool(self._opening)
                )
            return self._grammars.compiled(response_format["schema"])

    def _repeat(self, model: str, ids: np.ndarray) -> int:
        """Return how often this prompt was sampled before, so that its samples differ where nobody gives a seed."""
        key = hash((model, ids.tobytes()))
        with self._tokenizing:
            self._sampled[key] += 1
            return self._sampled[key] - 1

    def close(self) -> None:
        """Stop the worker; a later request starts a new one."""
        self._worker.close()

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
