"""Run `crossover ui` on a store: MLflow's own server, on loopback, ended as a person ends it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import free_port


def start_ui(store: Path) -> tuple["subprocess.Popen[str]", str]:
    """Return the process of `crossover ui` on a free port, and its address once it has said it.

    What it prints after that, such as the address of the last run, stays to be read from the process.
    """
    port = free_port()
    # A process started in the background ignores Ctrl-C, and its children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [
        sys.executable,
        "-c",
        f"{heed}; from crossover.eval.cli.main import main; main(['ui', '--port', '{port}', '--store', '{store}'])",
    ]
    ui = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert ui.stdout is not None
    assert ui.stdout.readline() == f"MLflow UI: http://127.0.0.1:{port}   (Ctrl-C ends it)\n"
    return ui, f"http://127.0.0.1:{port}"


@contextmanager
def served_ui(store: Path) -> Iterator[str]:
    """Yield the address of the UI, and end it by Ctrl-C, which must end it well."""
    ui, address = start_ui(store)
    with ui:
        try:
            yield address
        finally:
            ui.send_signal(signal.SIGINT)
            try:
                code = ui.wait(120)
            finally:
                ui.kill()
        assert code == 0
