"""Serve a model by a vLLM server: prompts go there as token ids, and adapters are loaded there by name."""

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import torch

from crossover.models.batching import Job, failing
from crossover.models.device import load_configuration
from crossover.models.errors import UserError
from crossover.models.token_engine import BASE, TokenEngine, Weights
from crossover.models.vllm_api import AT_ONCE, VllmApi
from crossover.models.vllm_server import serving
from crossover.models.weights import folder_sha256, weights_sha256

NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Settings that a server would otherwise take from the model's generation_config.json."""


class Salts:
    """Keep apart what the server keeps of prompts: it shares states among requests of one salt alone.

    The server drops them when it needs the room, and not where a block ends.
    """

    def __init__(self) -> None:
        """Begin without a salt."""
        self.now = ""
        self._known = list[tuple[object, str]]()

    @contextlib.contextmanager
    def belonging_to(self, owner: object, *, briefly: bool = False) -> Iterator[None]:
        """Send the salt of `owner` inside the context."""
        outer, known = self.now, next((salt for other, salt in self._known if other == owner), "")
        if not known:
            known = uuid.uuid4().hex
            self._known.append((owner, known))
        self.now = known
        try:
            yield
        finally:
            self.now = outer


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
        # A server elsewhere may have the weights in another folder; the last part of the name is the model's.
        if Path(served.place).name.lower() != place.name.lower():
            what = f"vLLM at {api.address} serves {served.place}, and not {source}"
            raise UserError(f"{what}; name that model, or start another server")
        self.base, self.context = served.name, min(self.context, served.context)
        self.prefixes = Salts()
        # The server refuses ids beyond the width of its logits.
        self._ends_of_texts = sorted(i for i in self.stop if i < self._width)
        # A grammar says itself which line break ends an answer.
        self._ends_of_grammars = sorted(i for i in self._ends if i < self._width)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vllm")

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
        """Let the server load a LoRA adapter from its folder, which it may read again later.

        Raises:
            UserError: the server cannot load it.
        """
        if json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("use_dora"):
            raise UserError(f"vLLM serves no DoRA adapter, and {folder} holds one; use `adapter: lora`, or `local:`")
        name = folder_sha256(folder)[:12]
        self.api.load_adapter(name, folder)
        return name

    def with_weights(self, folder: Path) -> NoReturn:
        """Refuse whole weights, which would need a server of their own."""
        raise UserError(f"vLLM serves adapters on one base, and {folder} holds whole weights; use `local:`")

    def token_logprobs(self, ids: Sequence[int], last: int, adapter: str = BASE) -> torch.Tensor:
        """Return the log-probability of each of the `last` tokens of a text; see `TokenEngine`."""
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
                body = self._body(job, salt)
                whole = self.api.complete(body) if job.prompt.on_token is None else self._streamed(body, job)
                details = whole["usage"].get("prompt_tokens_details") or {}
                job.cached = int(details.get("cached_tokens") or 0)
                reason = "length" if whole["finish_reason"] == "length" else "stop"
                job.answer.set_result((list(whole["token_ids"]), reason))

    def _body(self, job: Job, salt: str) -> dict[str, Any]:
        """Return the request of a job; with a grammar, the server writes what it forces, which is not counted."""
        prompt, grammar = job.prompt, job.prompt.grammar
        opening = len(grammar.opening) if grammar else 0
        return {
            "model": job.adapter or self.base,
            "prompt": job.ids[: len(job.ids) - opening].tolist(),
            "max_tokens": prompt.max_tokens + opening,
            "temperature": prompt.temperature,
            "seed": prompt.seed,
            "stop_token_ids": self._ends_of_grammars if grammar else self._ends_of_texts,
            "skip_special_tokens": False,
            "return_token_ids": True,
            **NEUTRAL,
            **({"cache_salt": salt} if salt else {}),
            **({"structured_outputs": {"grammar": grammar.lark}} if grammar else {}),
        }

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
