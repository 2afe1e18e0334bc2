"""Index a corpus ahead of a run; an interrupted index resumes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from crossover.eval.experiment import catalog
from crossover.eval.experiment.document import KINDS, WORDS
from crossover.models.errors import UserError
from crossover.programs.data import read_corpus
from crossover.programs.records import Problem
from crossover.programs.retrieval.chunks import chunked
from crossover.programs.retrieval.load import load_retriever


def index_corpus(
    file: Path,
    *,
    backend: str,
    settings: Sequence[str],
    chunk_words: int,
    store: Path,
    progress: Callable[[str], None],
) -> str:
    """Index the passages of a file and return a line of counts and seconds.

    An experiment with the same retrieval and store uses this index.

    Raises:
        UserError: the file, the backend or one of its options is wrong, or the backend cannot be used.
    """
    problems = list[Problem]()
    corpus = read_corpus(str(file), Path(), problems)
    if errors := [p for p in problems if p.level == "error"]:
        raise UserError("\n".join(map(str, errors)))
    retriever = load_retriever(backend, _options(backend, settings), store / "index")
    passages, _ = chunked(corpus, chunk_words)
    start = time.perf_counter()
    done = retriever.index(passages, progress)
    seconds = time.perf_counter() - start
    counts = f"{done.added} indexed, {done.kept} there already, {done.removed} removed"
    return f"{file}: {len(passages)} passages in {backend}: {counts}, {seconds:.1f} s"


def remove_indexed(pattern: str, settings: Sequence[str]) -> list[str]:
    """Delete the collections of a Weaviate server whose names match a pattern, and return the names.

    Raises:
        UserError: an option is wrong, the server cannot be used, or no collection matches.
    """
    from crossover.programs.retrieval.weaviate import Weaviate
    from crossover.programs.retrieval.weaviate_requests import remove_collections

    return remove_collections(Weaviate(**_options("weaviate", settings)).address, pattern)


def _options(backend: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return the backend's options, each `key=value` checked as in an experiment file."""
    entries = {e.name: e for e in catalog.backends()}
    if backend not in entries:
        raise UserError(f"unknown retrieval backend {backend!r}; use one of {', '.join(sorted(entries))}")
    types, options = catalog.backend_options(entries[backend]), dict[str, Any]()
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise UserError(f"--set {setting}: no `=`; write --set alpha=0.3")
        if key not in types:
            known = ", ".join(sorted(types)) or "none"
            raise UserError(f"--set {setting}: {backend} has no option {key!r}; its options: {known}")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as e:
            raise UserError(f"--set {setting}: the value is not valid YAML; quote it") from e
        kind = types[key]
        if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise UserError(f"--set {setting}: {value!r} is not a {WORDS[kind]}; correct it")
        options[key] = value
    return options
