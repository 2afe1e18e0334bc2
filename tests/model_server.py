"""`transformers serve` on loopback: a real model behind a real OpenAI-compatible server, in a process of its own."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tiny
from processes import free_port

PRICED, UNPRICED = "gpt-4o-mini", "house-model"
"""Names that the small model is served by: one that stands in the table of prices, and one that does not."""


@contextmanager
def model_server(folder: Path, seconds: float = 600) -> Iterator[str]:
    """Serve the small model and yield the address; a model's name is its folder, seen from the server's."""
    for name in (PRICED, UNPRICED):
        (folder / name).symlink_to(tiny.FOLDER, target_is_directory=True)
    port = free_port()
    # float32, as the model runs in this process: at half the precision some answers differ.
    argv = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with (folder / "served.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", *argv],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        deadline = time.monotonic() + seconds
        while not _healthy(port):
            assert process.poll() is None, (folder / "served.log").read_text()
            assert time.monotonic() < deadline, f"not ready after {seconds} s"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
