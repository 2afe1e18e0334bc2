"""Look at the machine: what a run needs, and whether it is there."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("torch", "dspy", "transformers", "peft", "trl", "mlflow", "weaviate-client", "bm25s", "click")
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "HF_TOKEN", "WEAVIATE_API_KEY")


def checks(store: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield name, whether it is in order, and what was found; a key's value is never looked at."""
    from models.local import accelerator

    yield "python", sys.version_info >= (3, 11), platform.python_version()
    for name in PACKAGES:
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, False, "not installed; run `pip install -c constraints.txt -e .`"
    yield "cores", True, str(os.cpu_count())
    yield "gpu", True, accelerator()
    for key in KEYS:
        yield key, True, "present" if os.environ.get(key) else "absent"
    weights = Path(__file__).parent.parent / "models" / "embedded" / "weights" / "model.safetensors"
    yield "embedded model", weights.exists(), f"{weights.stat().st_size / 1e6:.1f} MB" if weights.exists() else "missing"
    yield "store", *_store(store)


def _store(store: Path) -> tuple[bool, str]:
    """Return whether the store can be written, and where it is."""
    place = store if store.exists() else store.absolute().parent
    if not os.access(place, os.W_OK):
        return False, f"{store} cannot be written; use --store FOLDER"
    return True, f"{store} ({sum(1 for _ in store.glob('cells/*/result.json'))} finished cells)"
