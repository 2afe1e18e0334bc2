"""The HTTP API of a vLLM server, as far as it is asked: completions of token ids, and adapters by name."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError

from crossover.models.errors import UserError, shortened

LORA_FLAGS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank RANK"
AT_ONCE = 256
"""Requests that are under way at a time; more wait here, as they would in the server."""
PATIENCE = 5
"""How many times longer than a provider's answer may take one of a server whose queue is ours alone."""


class Retries(urllib3.Retry):
    """Ask again where a connection broke: a server closes those that were idle for some seconds."""

    def increment(self, *args: Any, **settings: Any) -> "Retries":
        """Count a failure; an answer that takes too long is not asked for again."""
        if isinstance(settings.get("error"), ReadTimeoutError):
            raise settings["error"]
        return super().increment(*args, **settings)


RETRIES = Retries(2, allowed_methods=None, backoff_factor=0.1, redirect=False, raise_on_status=False)


class Served(NamedTuple):
    """The base that a server answers with."""

    name: str
    """What requests call it."""
    place: str
    """The folder or hub id that the server loaded."""
    context: int
    """Tokens of prompt and answer together."""


class VllmRefusedError(UserError):
    """Report that a vLLM server refused a request."""

    def __init__(self, address: str, said: str) -> None:
        """Hold what the server said."""
        super().__init__(f"vLLM at {address} refused: {said}; see the server's log")
        self.said = said


class VllmApi:
    """The API of one vLLM server, 0.11 or later: older ones return no token ids, or name grammars otherwise."""

    def __init__(self, address: str, *, key: str = "", timeout: float = 120.0, started: bool = False) -> None:
        """Ask the server at `address`, which ends in `/v1`; an answer may take `PATIENCE` times `timeout` seconds."""
        self.address, self.started = address.rstrip("/"), started
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeouts = urllib3.Timeout(connect=timeout, read=PATIENCE * timeout)
        self._pool = urllib3.PoolManager(maxsize=AT_ONCE, retries=RETRIES, timeout=timeouts)

    def is_up(self) -> bool:
        """Return whether the server is ready to answer."""
        health = f"{self.address.removesuffix('/v1')}/health"
        try:
            return int(self._pool.request("GET", health, retries=False, timeout=5.0).status) == 200
        except HTTPError:
            return False

    def served(self) -> Served:
        """Return the base that the server answers with.

        Raises:
            UserError: the server does not answer, or is no vLLM server.
        """
        try:
            listed = self._asked("GET", "/models").json()
        except VllmRefusedError as e:
            remedy = "check `api_key`, and that the address ends in /v1"
            raise UserError(f"the server at {self.address} refused: {e.said}; {remedy}") from e
        except ValueError:
            listed = None
        bases = [m for m in listed.get("data", ()) if not m.get("parent")] if isinstance(listed, dict) else []
        if not bases or not bases[0].get("max_model_len"):
            raise UserError(f"{self.address} is no vLLM server; give the address of one, such as http://HOST:8000/v1")
        base = bases[0]
        return Served(str(base["id"]), str(base.get("root") or base["id"]), int(base["max_model_len"]))

    def version(self) -> str:
        """Return the version of vLLM, empty where the server does not tell it."""
        try:
            response = self._pool.request("GET", f"{self.address.removesuffix('/v1')}/version", headers=self._headers)
            return str(response.json()["version"])
        except (HTTPError, ValueError, KeyError, TypeError):
            return ""

    def check_adapters(self) -> None:
        """Find out whether the server loads adapters, by the name of a folder that is nowhere.

        Raises:
            UserError: it does not.
        """
        try:
            self._asked("POST", "/load_lora_adapter", {"lora_name": "none", "lora_path": "/nowhere"})
        except VllmRefusedError as e:
            if e.said == "Not Found" or "not enabled" in e.said:
                raise UserError(f"vLLM at {self.address} loads no adapters; start it with {LORA_FLAGS}") from e

    def load_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter known by a name, unless the server knows it already.

        Raises:
            UserError: the server cannot load it, or lets nobody load adapters.
        """
        try:
            self._asked("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        except VllmRefusedError as e:
            if "already been loaded" in e.said:
                self._load_again(name, folder)
                return
            what = f"vLLM at {self.address} did not load the adapter in {folder} ({e.said})"
            raise UserError(f"{what}; start it with {LORA_FLAGS}, where it can read that folder") from e

    def _load_again(self, name: str, folder: Path) -> None:
        """Let a name that is known stand for weights in this folder: those that it stood for may be gone."""
        listed = self._asked("GET", "/models").json()["data"]
        if str(folder.resolve()) not in (m.get("root") for m in listed if m["id"] == name):
            self._asked("POST", "/unload_lora_adapter", {"lora_name": name})
            self._asked("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the one choice of a completion, with the `usage` of the whole under that key.

        Raises:
            UserError: the server does not answer, refuses, or broke the answer off.
        """
        answer = self._asked("POST", "/completions", body).json()
        choice: dict[str, Any] = answer["choices"][0]
        if choice.get("token_ids") is None:
            raise UserError(f"vLLM at {self.address} returns no token ids; update it to 0.11 or later")
        self._check_ended(choice.get("finish_reason"))
        return choice | {"usage": answer.get("usage") or {}}

    def stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the pieces of a completion as they come, the last one with the `usage` of the whole.

        Raises:
            UserError: the server does not answer, refuses, or breaks off.
        """
        options = {"stream": True, "stream_options": {"include_usage": True}}
        response, reason = self._asked("POST", "/completions", {**body, **options}, whole=False), None
        try:
            for line in _lines(response):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    piece = json.loads(line[6:])
                    if error := piece.get("error"):
                        raise VllmRefusedError(self.address, _message_of(error))
                    choice = (piece.get("choices") or [{}])[0]
                    reason = choice.get("finish_reason") or reason
                    yield choice | {"usage": piece.get("usage") or {}}
            self._check_ended(reason)
        except HTTPError as e:
            raise self._silent(e) from e
        finally:
            # A connection whose stream was read to its end is back in the pool by now; the rest of any other is lost.
            response.close()

    def _asked(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, whole: bool = True
    ) -> urllib3.BaseHTTPResponse:
        """Return the response to a request, read to its end if `whole`."""
        try:
            response = self._pool.request(
                method, f"{self.address}{path}", json=body, headers=self._headers, preload_content=whole
            )
        except HTTPError as e:
            raise self._silent(e) from e
        if response.status != 200:
            try:
                said = _message_of(json.loads(response.data))
            except ValueError:
                said = shortened(" ".join(response.data.decode(errors="replace").split()), 200)
            raise VllmRefusedError(self.address, said or f"status {response.status}")
        return response

    def _check_ended(self, reason: object) -> None:
        """Refuse an answer that neither the model ended nor its bound: a server that shuts down sends such."""
        if reason not in ("stop", "length"):
            raise UserError(f"vLLM at {self.address} broke an answer off ({reason}); see its log, and run again")

    def _silent(self, error: HTTPError) -> UserError:
        why = type(getattr(error, "reason", None) or error).__name__
        return UserError(f"vLLM at {self.address} does not answer ({why}); see its log, and run again once it does")


def _message_of(body: object) -> str:
    """Return what the body of a refusal says, in one line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message") or error.get("detail") if isinstance(error, dict) else None
    return shortened(" ".join(str(said or error).split()).rstrip("."), 200)


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the lines of a body as they come."""
    rest = b""
    # One read of what is there: a read of a fixed size would wait for the pieces to come.
    while chunk := response.read1():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.strip() for line in lines)
    yield rest.strip()
