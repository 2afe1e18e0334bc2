"""Start vLLM servers on loopback, one for each base, and end them with this process, however it ends."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from crossover.models.cache_folder import cache_folder
from crossover.models.errors import UserError, shortened
from crossover.models.vllm_api import VllmApi

EXECUTABLE = "vllm"
NOT_INSTALLED = "no command `vllm` is here to serve it"
REMEDY = "`pip install vllm` on a machine with a GPU, or give the `api_base` of a server that runs"
GPU_SHARE = 0.5
"""The part of the GPU's memory that the server may take; the rest is for training, in this process."""
MOST_RANK = 64
"""The largest rank of an adapter that a server makes room for; the methods' default is 16."""
ADAPTERS = 8
"""Adapters that are on the GPU at a time; others are read again from their folders when they are asked."""
POLL_SECONDS, NOTE_SECONDS = 0.2, 30.0
WATCH = (
    "import subprocess, sys, threading; server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL); "
    "threading.Thread(target=lambda: (sys.stdin.read(), server.terminate()), daemon=True).start(); "
    "sys.exit(server.wait())"
)
"""Runs a server until its standard input ends, which it does when the process at the other end is gone."""

_started: dict[tuple[str, bool], tuple[VllmApi, subprocess.Popen[bytes]]] = {}
"""The servers of this process, by what they serve, each with the process whose end ends it."""
_starting = threading.Lock()


def is_installed() -> bool:
    """Return whether a server can be started here."""
    return shutil.which(EXECUTABLE) is not None


def serving(source: Path | str, *, trust_remote_code: bool, timeout: float, note: Callable[[str], None]) -> VllmApi:
    """Return the server of a folder or hub id, started unless this process has started it before.

    Raises:
        UserError: vLLM is not installed, or ended before it was ready.
    """
    key = (str(source), trust_remote_code)
    with _starting:
        if key not in _started:
            _started[key] = _start(source, trust_remote_code=trust_remote_code, timeout=timeout, note=note)
        return _started[key][0]


def command(source: Path | str, port: int, *, trust_remote_code: bool) -> list[str]:
    """Return the command that serves a base on loopback for this project."""
    return [
        *(EXECUTABLE, "serve", str(source), "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"),
        *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--gpu-memory-utilization", str(GPU_SHARE)),
        *("--enable-lora", "--max-lora-rank", str(MOST_RANK), "--max-loras", str(ADAPTERS)),
        # The library that the grammars of answers are written for.
        *("--structured-outputs-config", '{"backend": "guidance"}'),
        *(["--trust-remote-code"] if trust_remote_code else []),
    ]


def _start(
    source: Path | str, *, trust_remote_code: bool, timeout: float, note: Callable[[str], None]
) -> tuple[VllmApi, subprocess.Popen[bytes]]:
    """Start a server, and return it when it is ready, with the process that watches it."""
    if not is_installed():
        raise UserError(f"vllm:{source}: {NOT_INSTALLED}; {REMEDY}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = cache_folder() / "vllm" / f"{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-c", WATCH, *command(source, port, trust_remote_code=trust_remote_code)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
            # Ctrl-C ends a run in order, which needs the server to its end.
            start_new_session=True,
        )
    api, begun, told = VllmApi(f"http://127.0.0.1:{port}/v1", timeout=timeout), time.monotonic(), 0.0
    note(f"starting vLLM for {source}; its log is {log}")
    while not api.is_up():
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = shortened(next((" ".join(x.split()) for x in reversed(lines) if x.strip()), "it said nothing"), 200)
            raise UserError(f"vLLM for {source} ended before it was ready: {last}; see {log}")
        if (waited := time.monotonic() - begun) > told + NOTE_SECONDS:
            told = waited
            note(f"vLLM is not ready yet, after {waited:.0f} s")
        time.sleep(POLL_SECONDS)
    return api, process
