"""Serve the MLflow UI on loopback."""

import os
import signal
import socket
import warnings
import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import click

from crossover.eval.report.text import visible
from crossover.eval.store.recorded import recorded_facts
from crossover.eval.tracking.addresses import charts_address, follow_move, store_uri
from crossover.models.api_keys import redact
from crossover.models.errors import UserError

HOST = "127.0.0.1"
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Otherwise seven more processes wait for jobs that only MLflow's own judges send.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Mapping[str, Any], Any, Send], Awaitable[None]]
"""An ASGI application: scope, receive, send."""


def serve_ui(store: Path, *, port: int, tracking_uri: str | None, opens: bool = False) -> int:
    """Serve MLflow's UI in this process on 127.0.0.1, print the address of the last run, and stay until Ctrl-C.

    `opens` opens the address in the browser too. Where a server tracks the store, its address is printed.

    Raises:
        UserError: nothing was run in this store yet, the port is not free, or MLflow cannot be reached.
    """
    uri = store_uri(store, tracking_uri)
    if uri.startswith("http"):
        _announce(store, uri, redact(uri).rstrip("/"), opens=opens)
        return 0
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"{store}: no runs here yet; `crossover run` first, or name the folder with --store")
    with _listening(port) as listener:
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            click.echo("starting the MLflow UI …", err=True)
            _serve(listener, store, uri, opens=opens)
        except KeyboardInterrupt:
            pass
    return 0


def _listening(port: int) -> socket.socket:
    """Return a socket that listens on this port of 127.0.0.1.

    Raises:
        UserError: the port is not free.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as e:
        raise UserError(
            f"port {port} cannot be used: {os.strerror(e.errno or 0)}; try --port {port % 65535 + 1}"
        ) from None


def _serve(listener: socket.socket, store: Path, uri: str, *, opens: bool) -> None:
    """Answer requests until a signal ends it; the server lives in this process and dies with it."""
    os.environ.update(ENVIRONMENT)
    import uvicorn
    from mlflow.server import constants

    # As `mlflow server` sets them for its workers.
    artifacts = "mlflow-artifacts:/"
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = uri
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = artifacts
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = "./mlartifacts"
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    with warnings.catch_warnings():
        # What is deprecated in there is MLflow's affair.
        warnings.simplefilter("ignore")
        from mlflow.server.fastapi_app import app
        from mlflow.server.handlers import initialize_backend_stores

    try:
        follow_move(store, uri)
        initialize_backend_stores(uri, uri, artifacts)
    # MLflow, SQLAlchemy and the database's driver raise errors of their own.
    except Exception as e:
        raise UserError(f"MLflow cannot open {redact(uri)}: {' '.join(redact(str(e)).split())[:200]}") from e
    address = f"{HOST}:{listener.getsockname()[1]}"
    config = uvicorn.Config(own_pages_only(app, address), log_level="error", timeout_graceful_shutdown=1)
    # The socket listens already, so that a browser which comes early waits.
    _announce(store, uri, f"http://{address}", opens=opens, how_to_end="   (Ctrl-C ends it)")
    uvicorn.Server(config).run(sockets=[listener])


def _announce(store: Path, uri: str, server: str, *, opens: bool, how_to_end: str = "") -> None:
    """Print the address of the server and of the store's last run on it, and open the latter.

    Raises:
        UserError: MLflow cannot be reached.
    """
    from crossover.eval.tracking.tracker import Tracker, TrackingError

    names = [str(facts["experiment"]) for facts in recorded_facts(store)]
    try:
        known = Tracker(store, uri).client.get_experiment_by_name(names[0]) if names else None
    except TrackingError as e:
        raise UserError(f"MLflow at {redact(uri)}: {e}") from e
    click.echo(f"MLflow UI: {server}{how_to_end}")
    address = server if known is None else charts_address(server, known.experiment_id)
    if known is not None:
        click.echo(f"{visible(names[0])}: {address}")
    if opens:
        webbrowser.open(address)


def own_pages_only(app: App, address: str) -> App:
    """Return `app` behind a check that refuses requests to another host than `address`, and those of foreign pages.

    MLflow's own check lets in every page of this machine, and names that begin like a private address.
    """
    hosts = {address, address.replace(HOST, "localhost")}
    origins = {f"http://{host}" for host in hosts}

    async def guarded(scope: Mapping[str, Any], receive: Any, send: Send) -> None:
        sent = [(name, value.decode("latin-1")) for name, value in scope.get("headers", ())]
        named = [value for name, value in sent if name == b"host"]
        own = len(named) == 1 and named[0] in hosts and all(v in origins for name, v in sent if name == b"origin")
        if scope["type"] == "lifespan" or own:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not a page of this server"})

    return guarded
