"""Send the prompts of a program to a local engine before the program asks for them, thousands at once.

DSPy needs a thread for every call under way, and renders, checks and converts the whole prompt in each. What a program
of one step asks is known from the example: its prompt goes to the engine ahead, rendered from the question on, and the
program runs once the answer is there. A program that asks anything else is answered in DSPy's own way.
"""

import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Any, Protocol, runtime_checkable

import dspy
from dspy import lm15
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from dspy.clients.call_result import usage_dict

from crossover.models.engine import innermost
from crossover.models.prompt import first_messages

MOST_UNDER_WAY = 2048
"""Prompts that are with an engine at a time; the token ids of one that is 6,000 tokens long take 24 KB."""


class Job(Protocol):
    """One request on its way through an engine."""

    answer: "Future[tuple[list[int], str]]"
    """New token ids, and `stop` or `length`."""

    def usage(self, new: Sequence[int]) -> lm15.Usage:
        """Return the tokens of the prompt and of the answer `new`."""
        ...


class Turns(Sequence[lm15.Message]):
    """The messages of a prompt; all but the last are shared with other prompts, as copies of hundreds take long."""

    __slots__ = ("_last", "_shared")

    def __init__(self, shared: tuple[lm15.Message, ...], last: lm15.Message) -> None:
        """Put the last message after the shared ones."""
        self._shared, self._last = shared, last

    def __len__(self) -> int:
        """Return the number of messages."""
        return len(self._shared) + 1

    def __iter__(self) -> Iterator[lm15.Message]:
        """Yield the messages."""
        yield from self._shared
        yield self._last

    def __getitem__(self, index: Any) -> Any:
        """Return a message, or several by a slice."""
        return (*self._shared, self._last)[index]


@dataclass(frozen=True, slots=True)
class SentRequest(lm15.Request):
    """A request that an engine computes before it is asked for."""

    job: Job | None = None

    def __post_init__(self) -> None:
        """Check nothing: the request that it was made from has been checked, message by message."""


@runtime_checkable
class SendsAhead(Protocol):
    """An engine that can compute answers before they are asked for."""

    def send_ahead(self, request: lm15.Request, contents: Sequence[str]) -> list[SentRequest | None]:
        """Queue a request for each content of the last message; None stands for one that the context cannot hold."""
        ...


@runtime_checkable
class PromptFormat(Protocol):
    """A DSPy adapter that can render the last message alone."""

    def last_content(self, signature: type[dspy.Signature], inputs: dict[str, Any]) -> str:
        """Return the content of the last message of `format`."""
        ...

    def request_options(self, signature: type[dspy.Signature]) -> dict[str, Any]:
        """Return what the format adds to a request."""
        ...


class Ahead:
    """The prompts of a program's one predictor that were sent ahead."""

    def __init__(self, program: dspy.Module, lm: dspy.LM, engine: SendsAhead, prompt_format: PromptFormat) -> None:
        """Send nothing yet; `lm` asks `engine`."""
        self.program, self.lm, self.engine, self.prompt_format = program, lm, engine, prompt_format
        [self.predictor] = program.predictors()
        self.demos = list(self.predictor.demos)
        self.claimed = 0
        """Answers that the program has asked for."""
        self.waited: dict[str, float] = {}
        """Seconds from an example's sending, by its id, until its answer was there."""
        self._base: lm15.Request | None = None
        self._sent: dict[str, list[SentRequest]] = {}
        """By the content of the last message."""

    def answered(self, examples: Sequence[dspy.Example]) -> Iterator[dspy.Example]:
        """Send the prompts of all examples, and yield each example when its answer is there or cannot be had ahead."""
        ready, under_way, sent = queue.SimpleQueue[dspy.Example](), 0, 0
        while sent < len(examples) or under_way:
            if sent < len(examples) and under_way <= MOST_UNDER_WAY // 2:
                chunk = examples[sent : sent + MOST_UNDER_WAY - under_way]
                sent, under_way = sent + len(chunk), under_way + len(chunk)
                self._send(chunk, ready)
            yield ready.get()
            under_way -= 1

    def _send(self, examples: Sequence[dspy.Example], ready: "queue.SimpleQueue[dspy.Example]") -> None:
        contents = dict[int, str]()
        for n, example in enumerate(examples):
            if (content := self._content(example)) is None:
                ready.put(example)
            else:
                contents[n] = content
                self._base = self._base or self._request(example)
        requests = self.engine.send_ahead(self._base, list(contents.values())) if self._base and contents else []
        for (n, content), request in zip(contents.items(), requests, strict=True):
            if request is None or request.job is None:
                ready.put(examples[n])
            else:
                self._sent.setdefault(content, []).append(request)
                request.job.answer.add_done_callback(partial(self._answered, examples[n], time.perf_counter(), ready))

    def _answered(
        self, example: dspy.Example, sent_at: float, ready: "queue.SimpleQueue[dspy.Example]", _: object
    ) -> None:
        self.waited[str(example["id"])] = time.perf_counter() - sent_at
        ready.put(example)

    def _request(self, example: dspy.Example) -> lm15.Request:
        """Return the request that DSPy makes of an example."""
        settings = {k: v for k, v in self.lm.kwargs.items() if v is not None}
        options = self.prompt_format.request_options(self.predictor.signature)
        messages = first_messages(self.program, example)
        return lm15.request_from_openai_chat({"model": self.lm.model, "messages": messages, **settings, **options})

    def _content(self, example: dspy.Example) -> str | None:
        """Return the last message of an example's prompt, None where DSPy has to make it."""
        signature = self.predictor.signature
        # The signature makes this anew each time.
        fields = signature.input_fields
        inputs = {k: v for k, v in example.inputs().items() if k in fields}
        try:
            content = self.prompt_format.last_content(signature, inputs)
            content.encode()
        except Exception:
            # The program meets the same error, and its row tells it.
            return None
        return None if not content or CUSTOM_TYPE_START_IDENTIFIER in content else content

    def claim(
        self, lm: dspy.LM, signature: type[dspy.Signature], demos: Sequence[Any], inputs: dict[str, Any]
    ) -> lm15.Response | None:
        """Return the response to a prompt that was sent ahead, None if it was not or has no answer."""
        same = lm is self.lm and signature is self.predictor.signature and len(demos) == len(self.demos)
        if not same or not all(map(is_, demos, self.demos)):
            return None
        requests = self._sent.get(self.prompt_format.last_content(signature, inputs))
        if not requests:
            return None
        request = requests.pop()
        if request.job is None or request.job.answer.exception() is not None:
            return None
        response: lm15.Response = lm.engine.complete(request)
        if dspy.settings.usage_tracker:
            dspy.settings.usage_tracker.add_usage(lm.model, usage_dict(response))
        self.claimed += 1
        return response

    def give_up(self) -> None:
        """Cancel what the engine has not begun to compute."""
        for request in (r for requests in self._sent.values() for r in requests):
            if request.job is not None:
                request.job.answer.cancel()


_ahead: ContextVar[Ahead | None] = ContextVar("ahead", default=None)
"""What the `sending_ahead` block has sent that the calling thread is in; score_examples hands it to its threads."""


@contextmanager
def sending_ahead(program: dspy.Module, lm: dspy.LM, prompt_format: dspy.Adapter) -> Iterator[Ahead | None]:
    """Let a program find inside the block the answers to prompts that were sent ahead; None where none can be sent.

    These are the greedy answers of a local engine to the only predictor of a program, while DSPy keeps no history.
    """
    engine, predictors = innermost(lm), program.predictors()
    kinds = [f.annotation for p in predictors for f in p.signature.fields.values()]
    seen = [*dspy.settings.get("callbacks", []), *lm.callbacks, *prompt_format.callbacks]
    able = isinstance(engine, SendsAhead) and isinstance(prompt_format, PromptFormat) and len(predictors) == 1
    plain = not any(isinstance(k, type) and issubclass(k, dspy.Type | dspy.History) for k in kinds)
    greedy = set(lm.kwargs) <= {"max_tokens", "temperature"} and not lm.kwargs.get("temperature")
    if not (able and plain and greedy and dspy.settings.disable_history) or seen:
        yield None
        return
    ahead = Ahead(program, lm, engine, prompt_format)
    token = _ahead.set(ahead)
    try:
        yield ahead
    finally:
        _ahead.reset(token)
        ahead.give_up()


def sent_ahead() -> Ahead | None:
    """Return what was sent ahead in the block that the calling thread is in."""
    return _ahead.get()
