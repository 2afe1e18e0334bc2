"""The verb `crossover doctor`; heavy packages are imported when it runs."""

import importlib.metadata
import os
import platform
import sqlite3
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click

from crossover.eval.cli.options import EXIT_CANNOT_RUN, store_option
from crossover.eval.cli.output import echo
from crossover.models.api_keys import PROVIDER_KEYS, redact

KEYS = (*PROVIDER_KEYS, "HF_TOKEN", "WEAVIATE_API_KEY")


@click.command()
@store_option
def doctor(store: Path) -> int:
    """Show versions, cores, GPU, keys present (never their value) and the store.

    Example: crossover doctor

    Example: crossover doctor --store runs
    """
    bad = 0
    for name, ok, text in checks(store):
        bad += not ok
        echo(f"{'ok ' if ok else 'BAD'}  {name:<18} {text}")
    return EXIT_CANNOT_RUN if bad else 0


def checks(store: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield the name, the state and a description of each requirement; values of keys are never read."""
    from crossover.eval.report.data import PACKAGES
    from crossover.models.device import accelerator
    from crossover.models.packaged import PACKAGED, status

    yield "python", sys.version_info >= (3, 11), platform.python_version()
    for name in PACKAGES:
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, False, "not installed; run `pip install -c constraints.txt -e .`"
    yield "dense retrieval", True, _dense()
    yield "weaviate", *_weaviate()
    yield "vllm", True, _vllm()
    yield "cores", True, str(os.cpu_count())
    yield "memory", True, _memory()
    yield "gpu", True, accelerator()
    for key in KEYS:
        yield key, True, "present" if os.environ.get(key) else "absent"
    for name, model in PACKAGED.items():
        yield name, *status(model, thorough=True)
    yield "store", *_store(store)
    yield "mlflow store", *_mlflow(store)


def _dense() -> str:
    try:
        return f"sentence-transformers {importlib.metadata.version('sentence-transformers')}"
    except importlib.metadata.PackageNotFoundError:
        return "not installed, needed for `backend: dense` alone; pip install -c constraints.txt -e '.[dense]'"


def _vllm() -> str:
    from crossover.models.vllm_server import executable

    return (
        executable() or "no command of that name, needed for `vllm:` models without `api_base` alone; pip install vllm"
    )


def _weaviate() -> tuple[bool, str]:
    """Return whether the server of WEAVIATE_URL answers; without that variable no server is asked."""
    if not os.environ.get("WEAVIATE_URL"):
        return True, "WEAVIATE_URL is not set"
    from crossover.models.errors import UserError
    from crossover.programs.retrieval.weaviate_connection import ServerAddress, connect

    place = ServerAddress("", 50051, embedded=False, folder=None)
    try:
        connect(place).close()
    except UserError as e:
        return False, str(e)
    return True, f"{place.url_or_default} answers"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):
        return "unknown"


def _mlflow(store: Path) -> tuple[bool, str]:
    """Return whether MLflow's store answers; a missing one is in order, because the first run makes it."""
    from crossover.eval.tracking.addresses import store_uri

    uri = store_uri(store, None)
    file, shown = Path(uri.removeprefix("sqlite:///")), redact(uri)
    if uri.startswith("sqlite:///") and not file.exists():
        return True, f"{shown}, made by the first run"
    try:
        if uri.startswith("sqlite:///"):
            with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
                (count,) = database.execute("select count(*) from runs").fetchone()
            return True, f"{shown}, {count} runs"
        if uri.startswith("http"):
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
                return True, f"{shown} answers"
    except (OSError, sqlite3.Error) as e:
        return False, redact(f"{uri} does not answer: {e}")
    return True, f"{shown}, not looked into"


def _store(store: Path) -> tuple[bool, str]:
    """Return whether the store can be written, and its place."""
    place = store if store.exists() else store.absolute().parent
    if not os.access(place, os.W_OK):
        return False, f"{store} cannot be written; use --store FOLDER"
    return True, f"{store} ({sum(1 for _ in store.glob('cells/*/result.json'))} finished cells)"
