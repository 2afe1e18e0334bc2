"""Serve the MLflow UI on loopback."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import click

from crossover.eval.tracking.tracker import store_uri
from crossover.models.api_keys import redact
from crossover.models.errors import UserError

READY_SECONDS = 120
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Otherwise seven more processes wait for jobs that only MLflow's own judges send.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def serve_ui(store: Path, *, port: int, tracking_uri: str | None) -> int:
    """Start MLflow's server on 127.0.0.1, say when it is ready, and stay until Ctrl-C.

    Raises:
        UserError: nothing was run in this store yet, or the server does not come up.
    """
    uri = store_uri(store, tracking_uri)
    if uri.startswith("http"):
        click.echo(f"MLflow UI: {redact(uri)}")
        return 0
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"{store}: no runs here yet; `crossover run` first, or name the folder with --store")
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *options]
    # Not on the command line, which every user of the machine can list: a URI may hold a password.
    environment = os.environ | ENVIRONMENT | {"MLFLOW_BACKEND_STORE_URI": uri}
    # A file, not a pipe: nobody would read the pipe, and a full one stops the server.
    log = Path(tempfile.mkdtemp(prefix="crossover-ui-")) / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        address = f"http://127.0.0.1:{port}"
        click.echo("starting the MLflow UI …", err=True)
        _wait_until_ready(process, log, address)
        click.echo(f"MLflow UI: {address}   (Ctrl-C ends it)")
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(log.parent)


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path, address: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(
                f"the MLflow server ended: {lines[-1] if lines else 'no message'}; is the port free? try --port 5001"
            )
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise UserError(f"the MLflow server did not answer within {READY_SECONDS} s; try --port 5001")
