"""What engines of models with weights at hand share: prompts become token ids here, and token ids become answers."""

import queue
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from dspy import lm15

from crossover.models.ahead import SentRequest, Turns
from crossover.models.batching import Job
from crossover.models.constrained import CompiledGrammar, Grammars
from crossover.models.decode import Prompt
from crossover.models.encoding import PromptEncoder
from crossover.models.prompt import messages_of
from crossover.models.text import FALLBACK_TEMPLATE, answer_opening, mend_tokenizer, stop_tokens, text_pieces
from crossover.models.think import without_thoughts

BASE = ""
"""Adapter name of the untouched base."""


class Weights(NamedTuple):
    """The weights that an engine answers with, and that a training starts from."""

    folder: Path = Path(".")
    """Where they lie; a hub id as a path for those of the hub."""
    sha256: str = ""
    trust_remote_code: bool = False
    """Whether code that came with the weights may run, also where they are loaded again to be trained."""


IN_MEMORY = Weights()
"""Those of a model that was made in this process."""


class TokenEngine(ABC):
    """Answer DSPy requests with token ids: rendering and tokenizing are the same wherever the model runs.

    A subclass answers jobs, each of which holds the token ids of a prompt.
    """

    local, inner = True, None
    supported_params, supports_response_schema = frozenset[str](), False

    def __init__(self, tokenizer: Any, config: Any, ends: int | Sequence[int] | None, weights: Weights) -> None:
        """Ask a model of this configuration; `ends` are the tokens that end an answer by its generation config."""
        self.tokenizer = tokenizer
        self.folder, self.sha256, self.trust_remote_code = weights
        # Weights trained by this project are saved with the fallback template if they were trained in it.
        self.stop_at_line = tokenizer.chat_template in (None, FALLBACK_TEMPLATE)
        if self.stop_at_line:
            tokenizer.chat_template = FALLBACK_TEMPLATE
        self.served_by = ""
        """What answers, where it is no part of this process."""
        self.remarks = mend_tokenizer(tokenizer)
        """What a reader of the results must know of how the model was asked."""
        self._encoder = PromptEncoder(tokenizer)
        self._opening = tokenizer.encode(answer_opening(tokenizer), add_special_tokens=False)
        """Token ids that training text holds before every answer, and that a grammar leaves no room for."""
        self.context = int(config.get_text_config().max_position_embeddings)
        self._width = int(config.get_text_config().vocab_size)
        """Of the logits."""
        self._ends = stop_tokens(ends, tokenizer, at_line=False)
        self.stop = stop_tokens(ends, tokenizer, self.stop_at_line)
        self._tokenizing = threading.Lock()
        """Held while a prompt is prepared, which goes on beside a running batch."""
        self._sampled: Counter[int] = Counter()
        self._grammars: Grammars | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "TokenEngine":
        """Return itself: DSPy's optimizers copy programs, and must not copy the model with them."""
        return self

    @abstractmethod
    def add_adapter(self, folder: Path) -> str:
        """Make a LoRA adapter of the base known, and return its name, which holds the hash of its weights."""

    def check_adapters(self) -> None:
        """Find out whether adapters can be added, before any is trained.

        Raises:
            UserError: they cannot.
        """
        return

    @abstractmethod
    def with_weights(self, folder: Path) -> Self:
        """Return an engine of the same kind on whole weights that were trained from these.

        Raises:
            UserError: this kind of engine serves adapters alone.
        """

    @abstractmethod
    def token_logprobs(self, ids: Sequence[int], last: int, adapter: str = BASE) -> torch.Tensor:
        """Return the log-probability of each of the `last` tokens of a text after those before it.

        float32 on the CPU, shape (last,).
        """

    @abstractmethod
    def close(self) -> None:
        """End what answers; a later request begins it anew."""

    def _expect(self, jobs: int) -> None:  # noqa: B027
        """Hear of jobs that are being prepared, or, by a negative number, that they will not come."""

    @abstractmethod
    def _put(self, job: Job) -> None:
        """Answer a job that was announced, now or later, by its future."""

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the token ids of the prompt, up to the start of the answer."""
        with self._tokenizing:
            return self._encoder.encode(messages)

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        """Return the length of the prompt in tokens."""
        return len(self.encode(messages))

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
        self._expect(len(jobs))
        for job in jobs:
            self._put(job)
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
        self._expect(1)
        try:
            with self._tokenizing:
                [ids] = self._encoder.encode_all(messages_of(request))
            job = self._job(request, ids, on_token)
        except BaseException:
            self._expect(-1)
            raise
        self._put(job)
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
                self._grammars = Grammars(
                    self.tokenizer, self._width, self._ends, at_line=self.stop_at_line, opened=bool(self._opening)
                )
            return self._grammars.compiled(response_format["schema"])

    def _repeat(self, model: str, ids: np.ndarray) -> int:
        """Return how often this prompt was sampled before, so that its samples differ where nobody gives a seed."""
        key = hash((model, ids.tobytes()))
        with self._tokenizing:
            self._sampled[key] += 1
            return self._sampled[key] - 1
