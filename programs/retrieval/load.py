"""Build a retrieval backend by its file name."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossover.programs.retrieval.base import Retriever


def load_retriever(backend: str, options: Mapping[str, Any], folder: Path | None = None) -> Retriever:
    """Return the backend with its options; its index is stored in `folder`.

    Raises:
        UserError: an option has an invalid value.
    """
    found = vars(importlib.import_module(f"crossover.programs.retrieval.{backend}"))[backend.capitalize()]
    retriever: Retriever = found(**options, folder=folder)
    return retriever
