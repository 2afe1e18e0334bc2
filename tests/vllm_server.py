"""A server with the HTTP API of vLLM, as far as it is asked, that answers with a real small model.

Bodies and flags are those of vLLM 0.11 and later (docs.vllm.ai: OpenAI-compatible server, LoRA adapters, `vllm serve`).
`python vllm_server.py serve FOLDER …` stands in for the command `vllm serve FOLDER …`.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from crossover.models.batching import Job
from crossover.models.constrained import CompiledGrammar
from crossover.models.decode import Prompt
from crossover.models.local import LocalEngine


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.body = status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


class Server(ThreadingHTTPServer):
    """The server, with what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, folder: Path, port: int = 0, *, lora: bool = True, max_rank: int = 16, name: str = "", key: str = ""
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.engine = LocalEngine.load(folder)
        self.name, self.root, self.lora, self.max_rank = name or str(folder), str(folder), lora, max_rank
        self.key, self.shuts_down = key, False
        self.adapters, self.bodies = dict[str, tuple[str, str]](), list[dict[str, Any]]()
        self.tokenizer = from_tokenizer(self.engine.tokenizer)
        self.turn = threading.Lock()

    @property
    def url(self) -> str:
        """Return the address of the API."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def models(self) -> dict[str, Any]:
        """Return the base and its adapters."""
        base = {"id": self.name, "object": "model", "root": self.root, "parent": None}
        tuned = [
            {"id": n, "object": "model", "root": p, "parent": self.name, "max_model_len": None}
            for n, (_, p) in self.adapters.items()
        ]
        return {"object": "list", "data": [base | {"max_model_len": self.engine.context}, *tuned]}

    def load_adapter(self, body: Mapping[str, str]) -> str:
        """Attach an adapter by the name that requests will give."""
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            raise Refused(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").is_file():
            raise Refused(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads((Path(path) / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            what = f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
            raise Refused(500, "InternalServerError", what)
        self.adapters[name] = (self.engine.add_adapter(Path(path)), path)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload_adapter(self, body: Mapping[str, str]) -> str:
        """Forget an adapter."""
        if self.adapters.pop(body["lora_name"], None) is None:
            raise Refused(404, "NotFoundError", f"The lora adapter '{body['lora_name']}' cannot be found.")
        return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def complete(self, body: dict[str, Any], on_token: Any = None) -> tuple[Job, list[int], str]:
        """Return the job of a completion, its new tokens, and why they end."""
        self.bodies.append(body)
        if body["model"] != self.name and body["model"] not in self.adapters:
            raise Refused(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
        adapter, path = self.adapters.get(body["model"], ("", ""))
        if path and not (Path(path) / "adapter_config.json").is_file():
            # vLLM reads an adapter again that others have pushed out.
            raise Refused(
                500, "InternalServerError", f"Loading lora {body['model']} failed: No adapter found for {path}"
            )
        lark = (body.get("structured_outputs") or {}).get("grammar")
        grammar = None
        if lark:
            # vLLM's guidance backend reads a grammar in this way, and checks it before any tokenizer is known.
            written = llguidance.grammar_from("grammar", lark)
            if error := LLMatcher.validate_grammar(written, None):
                raise Refused(400, "BadRequestError", f"Grammar error: {error}")
            matcher = LLMatcher(self.tokenizer, written)
            grammar = CompiledGrammar(matcher, [], (int(self.engine.tokenizer.eos_token_id),), matcher, lark)
        stop = {*(body.get("stop_token_ids") or ()), int(self.engine.tokenizer.eos_token_id)}
        for text in body.get("stop") or ():
            stop |= {i for i in range(len(self.engine.tokenizer)) if text in self.engine.tokenizer.decode([i])}
        settings = body["max_tokens"], body.get("temperature", 1.0), body.get("seed") or 0
        job = Job(Prompt(np.asarray(body["prompt"], np.int32), *settings, grammar, on_token), adapter)
        with self.turn, self.engine.prefixes.belonging_to(body.get("cache_salt")):
            self.engine.stop = frozenset(stop)
            self.engine._expect(1)
            self.engine._put(job)
            new, _ = job.answer.result()
        # vLLM counts every token, forced or not, and ends at the first of these.
        ends = [n for n, token in enumerate(new, 1) if token in stop]
        new = new[: min([body["max_tokens"], *ends[:1]])]
        reason = "abort" if self.shuts_down else "stop" if new[-1] in stop else "length"
        return job, new, reason

    def usage(self, job: Job, new: list[int]) -> dict[str, Any]:
        """Return the usage of a completion, as `--enable-prompt-tokens-details` has it."""
        counts = {"prompt_tokens": len(job.ids), "completion_tokens": len(new), "total_tokens": len(job.ids) + len(new)}
        return counts | {"prompt_tokens_details": {"cached_tokens": job.cached}}

    def prompt_logprobs(self, ids: list[int], adapter: str) -> list[dict[str, Any] | None]:
        """Return the log-probability of each token of a prompt but the first, by its id."""
        values = self.engine.token_logprobs(ids, len(ids) - 1, adapter).tolist()
        texts = [self.engine.tokenizer.decode([i]) for i in ids]
        rows = zip(ids[1:], values, texts[1:], strict=True)
        return [None, *({str(i): {"logprob": v, "rank": 1, "decoded_token": t}} for i, v, t in rows)]


class Handler(BaseHTTPRequestHandler):
    """One connection, kept alive."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Answer for health and models."""
        if self.path == "/health":
            self._send(200, b"")
        elif self.path == "/version":
            self._send(200, b'{"version": "0.11.0"}')
        elif not self._known():
            self._send(401, b'{"error": "Unauthorized"}')
        elif self.path == "/v1/models":
            self._send(200, json.dumps(self.server.models()).encode())
        else:
            self._send(404, b'{"detail":"Not Found"}')

    def do_POST(self) -> None:
        """Answer for completions and adapters."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            if not self._known():
                self._send(401, b'{"error": "Unauthorized"}')
            elif self.path == "/v1/load_lora_adapter" and self.server.lora:
                self._send(200, self.server.load_adapter(body).encode())
            elif self.path == "/v1/unload_lora_adapter" and self.server.lora:
                self._send(200, self.server.unload_adapter(body).encode())
            elif self.path == "/v1/completions":
                (self._stream if body.get("stream") else self._complete)(body)
            else:
                self._send(404, b'{"detail":"Not Found"}')
        except Refused as e:
            self._send(e.status, json.dumps(e.body).encode())

    def _known(self) -> bool:
        return not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}"

    def _complete(self, body: dict[str, Any]) -> None:
        job, new, reason = self.server.complete(body)
        choice: dict[str, Any] = {"index": 0, "text": self.server.engine.tokenizer.decode(new), "logprobs": None}
        choice |= {"finish_reason": reason, "stop_reason": None, "prompt_logprobs": None}
        choice |= {"token_ids": new, "prompt_token_ids": body["prompt"]} if body.get("return_token_ids") else {}
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self.server.prompt_logprobs(body["prompt"], job.adapter)
        answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        self._send(200, json.dumps(answer | {"choices": [choice], "usage": self.server.usage(job, new)}).encode())

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}

        def piece(tokens: list[int], reason: str | None) -> None:
            text = self.server.engine.tokenizer.decode(tokens)
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "token_ids": tokens}
            self._chunk(json.dumps(head | {"choices": [choice]}))

        try:
            job, new, reason = self.server.complete(body, on_token=lambda token: piece([token], None))
        except Refused as e:
            self._chunk(json.dumps(e.body))
        else:
            if not self.server.shuts_down:
                piece([], reason)
            if (body.get("stream_options") or {}).get("include_usage"):
                self._chunk(json.dumps(head | {"choices": [], "usage": self.server.usage(job, new)}))
        self._chunk("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing of each request."""


@contextmanager
def vllm_server(folder: Path, **settings: Any) -> Iterator[Server]:
    """Serve in this process until the block ends."""
    server = Server(folder, **settings)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        server.engine.close()
        thread.join()


def install(folder: Path) -> str:
    """Write a command `vllm` that starts this server, and return a PATH on which it comes first."""
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / "vllm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    command.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def main() -> None:
    """Take the flags of `vllm serve` that are used, and no others."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    serve = parser.add_subparsers(required=True).add_parser("serve", allow_abbrev=False)
    serve.add_argument("model")
    serve.add_argument("--host", required=True, choices=["127.0.0.1"])
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"])
    serve.add_argument("--gpu-memory-utilization", type=float)
    serve.add_argument("--max-lora-rank", type=int, default=16, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
    serve.add_argument("--max-loras", type=int)
    serve.add_argument("--max-cpu-loras", type=int)
    serve.add_argument("--load-format", choices=["auto", "safetensors"])
    serve.add_argument("--generation-config", choices=["auto", "vllm"])
    serve.add_argument("--revision")
    serve.add_argument("--structured-outputs-config", type=json.loads)
    for flag in ("--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-lora", "--trust-remote-code"):
        serve.add_argument(flag, action="store_true")
    given = parser.parse_args()
    allowed = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() in ("1", "true")
    lora = given.enable_lora and allowed
    key = os.environ.get("VLLM_API_KEY", "")
    server = Server(Path(given.model), given.port, lora=lora, max_rank=given.max_lora_rank, key=key)
    print(f"INFO: serving {given.model}", flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
