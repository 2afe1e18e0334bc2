"""MLflow's own server, over sqlite or PostgreSQL, on loopback."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import free_port

POSTGRES = shutil.which("initdb") and shutil.which("postgres")


@contextmanager
def running(command: list[str], *, until: str, cwd: Path, user: str | None = None) -> Iterator[None]:
    """Run a server from the line of stderr that says it is ready, until the caller is done."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd, user=user) as server:
        assert server.stderr is not None
        said = list[str]()
        for line in server.stderr:
            said.append(line)
            if until in line:
                break
        else:
            raise AssertionError("".join(said))
        # Unread, a full pipe would hold the server up.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        try:
            yield
        finally:
            server.send_signal(signal.SIGINT)


@contextmanager
def tracking_server(folder: Path, database: str = "") -> Iterator[str]:
    """Run `mlflow server` as people do, over a database or sqlite, and yield its address once it answers."""
    port = str(free_port())
    database = database or f"sqlite:///{folder}/server.db"
    flags = ["--backend-store-uri", database, "--artifacts-destination", f"{folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", *flags, "--port", port, "--workers", "1"]
    with running(command, until="startup complete", cwd=folder):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def postgres() -> Iterator[str]:
    """Run PostgreSQL, which refuses to be root, and yield the URI of its database."""
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:
        if user:
            shutil.chown(name, user)
        data, port = f"{name}/data", str(free_port())
        init = ["initdb", "-D", data, "-A", "trust", "-U", "mlflow", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd=name, user=user)
        command = ["postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", "", "-F"]
        with running(command, until="ready to accept connections", cwd=Path(name), user=user):
            yield f"postgresql+psycopg://mlflow@127.0.0.1:{port}/postgres"
