"""Serve a model by a vLLM server: prompts go there as token ids, and adapters are loaded there by name."""

import contextlib
import json
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import torch

from crossover.models.batching import Job, failing
from crossover.models.constrained import replayed
from crossover.models.device import load_configuration
from crossover.models.errors import UserError
from crossover.models.token_engine import BASE, TokenEngine, Weights
from crossover.models.vllm_api import AT_ONCE, VllmApi
from crossover.models.vllm_server import kept_adapter, serving
from crossover.models.weights import folder_sha256, weights_sha256

LATEST = 64
"""Prompts of an owner that are read again for a brief context: those of an arm's warm-up, of all its steps."""
FORCED = 64
"""Tokens that a server may write beyond `max_tokens` under a grammar, which counts none that it forces."""
NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Settings that a server would otherwise take from the model's generation_config.json."""


class Salts:
    """Keep apart what the server keeps of prompts: it shares states among requests of one salt alone.

    The server drops them when it needs the room. It cannot drop those of a brief context, so that each of these has a
    salt of its own, under which the latest prompts of the owner are read before it begins.
    """

    def __init__(self, read: Callable[[dict[str, Any]], None]) -> None:
        """Begin without a salt; `read` lets the server read the prompt of a request."""
        self._read = read
        self.now = ""
        self._salts, self._latest = list[tuple[object, str]](), dict[str, deque[dict[str, Any]]]()

    @contextlib.contextmanager
    def belonging_to(self, owner: object, *, briefly: bool = False) -> Iterator[None]:
        """Find only the states of `owner` inside the context, and keep new ones for it, or only until its end."""
        outer, salt = self.now, next((salt for other, salt in self._salts if other == owner), "")
        if briefly:
            latest = list(self._latest.get(salt, ()))
            salt = uuid.uuid4().hex
            for body in latest:
                self._read(body | {"cache_salt": salt})
        elif not salt:
            salt = uuid.uuid4().hex
            self._salts.append((owner, salt))
            self._latest[salt] = deque(maxlen=LATEST)
        self.now = salt
        try:
            yield
        finally:
            self.now = outer

    def remember(self, body: dict[str, Any]) -> None:
        """Note a request as one of its owner's latest."""
        if body.get("cache_salt") in self._latest:
            self._latest[body["cache_salt"]].append(body)


class VllmEngine(TokenEngine):
    """Answer DSPy requests by a vLLM server, which batches them itself."""

    def __init__(self, source: Path | str, api: VllmApi, *, trust_remote_code: bool = False) -> None:
        """Ask the server `api` for the base in a folder or hub id, whose tokenizer is read here.

        Raises:
            UserError: the server does not answer, or answers with another base.
        """
        tokenizer, config, ends = load_configuration(source, trust_remote_code=trust_remote_code)
        place = Path(source) if Path(source).is_dir() else Path(str(config._name_or_path))
        super().__init__(tokenizer, config, ends, Weights(place, weights_sha256(source), trust_remote_code))
        self.api, served = api, api.served()
        self._compare(served.place, source, place)
        self.base, self.context = served.name, min(self.context, served.context)
        self.served_by = f"vLLM {api.version()}".strip()
        self.prefixes = Salts(self._read)
        # The server refuses ids beyond the width of its logits.
        self._end_ids = sorted(i for i in self._ends if i < self._width)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vllm")

    def _compare(self, served: str, source: Path | str, place: Path) -> None:
        """Hold the folder or hub id that the server has loaded against the one whose tokenizer is read here.

        Raises:
            UserError: it is another model.
        """
        there = Path(served)
        if served in (str(source), str(place)) or there.resolve() == place.resolve() or self.sha256 in there.parts:
            return
        if there.name.lower() != place.name.lower():
            what = f"vLLM at {self.api.address} serves {served}, and not {source}"
            raise UserError(f"{what}; name that model, or start another server")
        self.remarks.append(f"the server answers with {served}, whose weights were not compared with those of {source}")

    @classmethod
    def load(
        cls,
        source: Path | str,
        *,
        address: str,
        key: str,
        timeout: float,
        trust_remote_code: bool,
        note: Callable[[str], None],
    ) -> "VllmEngine":
        """Join the server at `address`, or start one where it is empty.

        Raises:
            UserError: no server can be started, or it serves another base.
        """
        if address:
            api = VllmApi(address, key=key, timeout=timeout)
        else:
            api = serving(source, trust_remote_code=trust_remote_code, timeout=timeout, note=note)
        return cls(source, api, trust_remote_code=trust_remote_code)

    def add_adapter(self, folder: Path) -> str:
        """Let the server load a LoRA adapter from its folder, which must stay: the server may read it again.

        Raises:
            UserError: the server cannot load it.
        """
        if json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("use_dora"):
            raise UserError(f"vLLM serves no DoRA adapter, and {folder} holds one; use `adapter: lora`, or `local:`")
        name = folder_sha256(folder)[:12]
        self.api.load_adapter(name, kept_adapter(name, folder) if self.api.started else folder)
        return name

    def check_adapters(self) -> None:
        """Find out whether adapters can be added, before any is trained.

        Raises:
            UserError: the server loads none.
        """
        self.api.check_adapters()

    def with_weights(self, folder: Path) -> NoReturn:
        """Refuse whole weights, which would need a server of their own."""
        raise UserError(f"vLLM serves adapters on one base, and {folder} holds whole weights; use `local:`")

    def token_logprobs(self, ids: Sequence[int], last: int, adapter: str = BASE) -> torch.Tensor:
        """Return the log-probability of each of the `last` tokens of a text; see `TokenEngine`."""
        # One token is always written, for which a text as long as the context leaves no room.
        ids = ids[-(self.context - 1) :]
        body = {"model": adapter or self.base, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 0}
        rows = self.api.complete({**body, "return_token_ids": True})["prompt_logprobs"]
        pairs = zip(ids[-last:], rows[-last:], strict=True)
        return torch.tensor([row[str(token)]["logprob"] for token, row in pairs], dtype=torch.float32)

    def close(self) -> None:
        """Wait for the requests that are under way."""
        self._threads.shutdown()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vllm")

    def _put(self, job: Job) -> None:
        self._threads.submit(self._ask, job, self.prefixes.now)

    def _ask(self, job: Job, salt: str) -> None:
        # One that was sent ahead may have been given up by now.
        if job.answer.set_running_or_notify_cancel():
            with failing([job]):
                body, grammar = self._body(job, salt), job.prompt.grammar
                self.prefixes.remember(body)
                answer = self.api.complete(body) if job.prompt.on_token is None else self._streamed(body, job)
                details = answer["usage"].get("prompt_tokens_details") or {}
                job.cached = int(details.get("cached_tokens") or 0)
                new, whole = list(answer["token_ids"]), answer["finish_reason"] == "stop"
                if grammar is not None:
                    new, whole = replayed(grammar, new, job.prompt.max_tokens)
                job.answer.set_result((new, "stop" if whole else "length"))

    def _body(self, job: Job, salt: str) -> dict[str, Any]:
        """Return the request of a job; what a grammar forces is written by the server, its opening too."""
        prompt, grammar = job.prompt, job.prompt.grammar
        if grammar is not None:
            prompt_ids = job.ids[: len(job.ids) - len(grammar.opening)]
            # The context has room for the opening and for `max_tokens`, as for any engine, and not always for more.
            room = self.context - len(prompt_ids)
            most = min(room, len(grammar.opening) + prompt.max_tokens + FORCED)
            held = {"structured_outputs": {"grammar": grammar.lark}, "stop_token_ids": self._end_ids}
        else:
            prompt_ids, most = job.ids, prompt.max_tokens
            held = {"stop_token_ids": self._end_ids, "stop": ["\n"] if self.stop_at_line else []}
        return {
            "model": job.adapter or self.base,
            "prompt": prompt_ids.tolist(),
            "max_tokens": most,
            "temperature": prompt.temperature,
            "seed": prompt.seed,
            "skip_special_tokens": False,
            "return_token_ids": True,
            **held,
            **NEUTRAL,
            **({"cache_salt": salt} if salt else {}),
        }

    def _read(self, body: dict[str, Any]) -> None:
        """Let the server read the prompt of a request that was answered before."""
        self.api.complete(body | {"max_tokens": 1, "structured_outputs": None})

    def _streamed(self, body: dict[str, Any], job: Job) -> dict[str, Any]:
        """Return a completion whose tokens are passed on as they come."""
        whole: dict[str, Any] = {"token_ids": [], "finish_reason": None, "usage": {}}
        for piece in self.api.stream(body):
            for token in piece.get("token_ids") or ():
                whole["token_ids"].append(token)
                if job.prompt.on_token is not None:
                    job.prompt.on_token(token)
            whole["finish_reason"] = piece.get("finish_reason") or whole["finish_reason"]
            whole["usage"] = piece["usage"] or whole["usage"]
        return whole
