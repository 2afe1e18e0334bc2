"""The command line in processes of their own, forked from one that has imported everything: they start in no time."""

import contextlib
import gc
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "crossover.eval.run.run",
        "crossover.eval.cli.main",
        "crossover.eval.report.table",
        "crossover.eval.experiment.read",
        "crossover.eval.report.page",
        "crossover.eval.tracking.tracker",
        "crossover.optimizers.common.search",
        "crossover.finetune.training.train",
        "crossover.finetune.training.loss",
        "crossover.finetune.training.targets",
        "crossover.models.local",
        "peft.tuners.lora",
        "mlflow.store.tracking.sqlalchemy_store",
        "openai.resources.chat.completions",
        "litellm",
        "processes",
    ]
)


UNTRACKED = ("--tracking-uri", "none")
"""Flags of a run whose tracking is nobody's concern: making MLflow's database takes longer than the run."""


def command(folder: str, output: str, argv: list[str], environment: dict[str, str]) -> None:
    """Run the command line in this process and end it with its exit code."""
    from crossover.eval.cli.main import main

    gc.freeze()
    os.environ.update({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} | environment)
    os.chdir(folder)
    with open(f"{output}.out", "w") as out, open(f"{output}.err", "w") as err:
        os.dup2(err.fileno(), 2)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
    sys.exit(code)


def start(folder: Path, output: Path, *argv: str, **environment: str) -> BaseProcess:
    """Start `crossover ARGV` in a folder; what it says goes to OUTPUT.out and OUTPUT.err."""
    process: Any = FORKS.Process(target=command, args=(str(folder), str(output), list(argv), environment))
    process.start()
    return process


def ended(process: BaseProcess, seconds: float = 600) -> int:
    """Wait for a process, killed if it does not end, and return its exit code."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"still running after {seconds} s")
    assert process.exitcode is not None
    return process.exitcode


def wait_for(seen: Any, seconds: float = 600) -> None:
    """Wait until `seen()` is true."""
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
