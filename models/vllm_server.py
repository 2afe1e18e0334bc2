"""Start vLLM servers on loopback, one for each base, and end them with this process, however it ends."""

import atexit
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from crossover.models.cache_folder import cache_folder
from crossover.models.errors import UserError, shortened
from crossover.models.vllm_api import VllmApi
from crossover.models.weights import weight_files, weights_sha256

NOT_INSTALLED = "vLLM is not installed here"
REMEDY = "`pip install vllm` on a machine with a GPU, or give the `api_base` of a running server"
GPU_SHARE = 0.5
"""The part of the GPU's memory that the server may take; the rest is for training, in this process."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks of adapters that vLLM makes room for."""
POLL_SECONDS, NOTE_SECONDS = 0.2, 30.0
END_SECONDS = 15.0
"""What a server gets to end by itself."""
WATCH = f"""
import os, signal, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def end():
    sys.stdin.read()
    server.terminate()
    try:
        server.wait({END_SECONDS})
    finally:
        os.killpg(0, signal.SIGKILL)
threading.Thread(target=end, daemon=True).start()
server.wait()
os.killpg(0, signal.SIGKILL)
"""
"""Runs a server until its standard input ends, which it does when the process at the other end is gone.

However it ends, what is left of its group is killed: the processes that it has started hold memory of the GPU.
"""
READY_SECONDS = 1200.0
"""A server that is not ready after so long never will be."""
ROOT_CAUSE = re.compile(r"(?:\w+Error|Exception): (?!Engine core initialization failed|Engine process failed).+")


class Started(NamedTuple):
    """A server of this process."""

    api: VllmApi
    process: subprocess.Popen[bytes]
    """It watches the server; its end ends it."""
    rank: int
    """The largest of an adapter that it makes room for."""


_started: dict[tuple[str, bool], Started] = {}
"""By what they serve; there is room for one at a time."""
_failed: dict[tuple[str, bool], UserError] = {}
_starting = threading.Lock()
_rank = 64
"""Of the adapters that a server which is started makes room for."""


def executable() -> str | None:
    """Return the path of the command, which may lie beside this Python and not on PATH; None where there is none."""
    places = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
    return shutil.which("vllm", path=places)


def is_installed() -> bool:
    """Return whether a server can be started here."""
    return executable() is not None


def serving(source: Path | str, *, trust_remote_code: bool, timeout: float, note: Callable[[str], None]) -> VllmApi:
    """Return the server of a folder or hub id, started unless this process has started it before.

    Raises:
        UserError: vLLM is not installed, or ended before it was ready.
    """
    key = (str(source), trust_remote_code)
    with _starting:
        if key in _failed:
            raise _failed[key]
        if key not in _started or _started[key].process.poll() is not None or _started[key].rank < _rank:
            _end_all()
            try:
                _started[key] = _start(source, trust_remote_code=trust_remote_code, timeout=timeout, note=note)
            except UserError as e:
                # The next cell would wait as long for the same end.
                _failed[key] = e
                raise
        return _started[key].api


def make_room(ranks: Iterable[int]) -> None:
    """Let servers that are started from now on make room for adapters of these ranks; for none, load none at all.

    A server is slower with more room than its adapters need. One that could not be started is tried again from here on.
    """
    global _rank
    _failed.clear()
    _rank = max((next((r for r in RANKS if r >= rank), RANKS[-1]) for rank in ranks), default=0)


def kept_adapter(name: str, folder: Path) -> Path:
    """Return a copy of an adapter that stays for as long as a server may read it again; the original may go."""
    kept = cache_folder() / "vllm" / "adapters" / name
    if not kept.is_dir():
        with tempfile.TemporaryDirectory(dir=_folder()) as draft:
            (Path(draft) / name).mkdir()
            for file in weight_files(folder):
                shutil.copy(file, Path(draft) / name)
            kept.parent.mkdir(exist_ok=True)
            # Another process may have been faster.
            with contextlib.suppress(OSError):
                (Path(draft) / name).rename(kept)
    return kept


def command(source: Path | str, port: int, *, trust_remote_code: bool) -> list[str]:
    """Return the command that serves a base on loopback for this project."""
    revision = [] if isinstance(source, Path) else ["--revision", weights_sha256(source)]
    lora = ["--enable-lora", "--max-lora-rank", str(_rank), "--max-loras", "8", "--max-cpu-loras", "64"]
    return [
        *(
            executable() or "vllm",
            "serve",
            str(source),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--dtype",
            "bfloat16",
        ),
        *("--load-format", "safetensors", "--generation-config", "vllm", *revision),
        *("--enable-prefix-caching", "--enable-prompt-tokens-details", "--gpu-memory-utilization", str(GPU_SHARE)),
        # The library that the grammars of answers are written for.
        *("--structured-outputs-config", '{"backend": "guidance"}'),
        *(lora if _rank else []),
        *(["--trust-remote-code"] if trust_remote_code else []),
    ]


def _folder() -> Path:
    folder = cache_folder() / "vllm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@atexit.register
def _end_all() -> None:
    """End the servers of this process, and wait until the GPU's memory is free for the next one."""
    while _started:
        _end(_started.popitem()[1].process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it has started."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2 * END_SECONDS)
    # Nothing is left of the group, unless what watches the server was killed itself.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _start(source: Path | str, *, trust_remote_code: bool, timeout: float, note: Callable[[str], None]) -> Started:
    """Start a server, and return it when it is ready."""
    if not is_installed():
        raise UserError(f"vllm:{source}: {NOT_INSTALLED}; {REMEDY}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, key = _folder() / f"{os.getpid()}-{port}.log", secrets.token_hex(16)
    told_nobody = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1"}
    argv = [sys.executable, "-c", WATCH, *command(source, port, trust_remote_code=trust_remote_code)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | told_nobody | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
            # Ctrl-C ends a run in order, which needs the server to its end.
            start_new_session=True,
        )
    api = VllmApi(f"http://127.0.0.1:{port}/v1", key=key, timeout=timeout, started=True)
    begun, told = time.monotonic(), 0.0
    note(f"starting vLLM for {source}; its log is {log}")
    while not api.is_up():
        if process.poll() is not None:
            said = log.read_text(encoding="utf-8", errors="replace")
            why = shortened(
                [*said.split("\n")[-2:-1], *ROOT_CAUSE.findall(said)][-1] if said.strip() else "silently", 200
            )
            raise UserError(f"vLLM for {source} ended before it was ready: {why}; see {log}")
        if (waited := time.monotonic() - begun) > READY_SECONDS:
            _end(process)
            raise UserError(f"vLLM for {source} is not ready after {waited:.0f} s; see {log}")
        if waited > told + NOTE_SECONDS:
            told = waited
            note(f"vLLM is not ready yet, after {waited:.0f} s")
        time.sleep(POLL_SECONDS)
    return Started(api, process, _rank)
