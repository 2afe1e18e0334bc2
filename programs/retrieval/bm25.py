"""BM25 in this process, by the bm25s package."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from crossover.models.jsonl import replacing
from crossover.programs.retrieval.base import Hits, Indexed, Passage, best_hits, hits_of_worded, silent
from crossover.programs.words import UNSPACED

RECORD = "index.sha256"
"""File of a stored index that names the hash of its texts and the hash of its other files."""
_RUN = re.compile(rf"[{UNSPACED}]{{2,}}")
"""Two or more letters of a script without spaces."""


@dataclass
class Bm25:
    """BM25 over lower-cased words without English stop words; equal scores keep the order of the corpus.

    Scripts without spaces between words are cut into overlapping pairs of characters.
    """

    folder: Path | None = None
    """Where the index is stored; None keeps it in memory."""
    _ids: list[str] = field(default_factory=list, init=False, repr=False)
    _scorer: Any = field(default=None, init=False, repr=False)

    def index(self, corpus: Sequence[Passage], progress: Callable[[str], None] = silent) -> Indexed:
        """Index the passages in place of earlier ones, or load the stored index of the same texts."""
        bm25s = without_jax()
        self._ids = [p.id for p in corpus]
        texts = [_spaced(p.render()) for p in corpus]
        digest = _sha256(texts)
        stored = None if self.folder is None else self.folder / f"bm25-{bm25s.__version__}-{digest[:16]}"
        if stored is not None and self._load(stored, digest):
            return Indexed(added=0, kept=len(corpus))
        progress(f"{len(corpus)} passages by BM25")
        words = _words(texts)
        # bm25s cannot index texts that hold no word at all.
        self._scorer = bm25s.BM25(backend="numpy") if any(words) else None
        if self._scorer is not None:
            self._scorer.index(words, show_progress=False)
        if stored is not None:
            with replacing(stored) as draft:
                draft.mkdir()
                if self._scorer is not None:
                    self._scorer.save(draft, show_progress=False)
                (draft / RECORD).write_text(_record(draft, digest), encoding="utf-8")
                # What stands there was not loaded, or another process has finished the same index meanwhile.
                shutil.rmtree(stored, ignore_errors=True)
        return Indexed(added=len(corpus), kept=0)

    def _load(self, stored: Path, digest: str) -> bool:
        """Load a stored index of the texts with this hash; return False where it is missing, damaged or of others."""
        try:
            if (stored / RECORD).read_text(encoding="utf-8") != _record(stored, digest):
                return False
            words = (stored / "params.index.json").exists()
            self._scorer = without_jax().BM25.load(stored, show_progress=False) if words else None
        except (OSError, ValueError):
            return False
        return True

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """Return, for each question, up to `k` passage ids with their scores, best first.

        A question without a letter or digit has no hits; one without a known word scores every passage 0.0.
        """
        k = min(k, len(self._ids))
        if k < 1:
            return [[] for _ in questions]
        return hits_of_worded(questions, lambda worded: self._search(worded, k))

    def _search(self, questions: Sequence[str], k: int) -> list[Hits]:
        import numpy as np

        hits = []
        for words in _words([_spaced(q) for q in questions]):
            known = self._scorer.get_tokens_ids(words) if self._scorer is not None else []
            scores = self._scorer.get_scores(known) if known else np.zeros(len(self._ids), dtype=np.float32)
            hits.append(best_hits(self._ids, scores, k))
        return hits

    def identity(self) -> str:
        """Return an empty string: no model decides the hits."""
        return ""


@cache
def without_jax() -> Any:
    """Import bm25s with jax out of its reach, unless something else has loaded jax already.

    bm25s would use jax for choosing the best k, which is done here by numpy; where jax finds a GPU, it takes three
    quarters of its memory.
    """
    absent = {"jax": None} if "jax" not in sys.modules else {}
    sys.modules.update(absent)  # type: ignore[arg-type]  # None makes an import fail
    try:
        return import_module("bm25s")
    finally:
        for name in absent:
            del sys.modules[name]


def _sha256(texts: Sequence[str]) -> str:
    """Return the hash of the texts in their order."""
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _record(folder: Path, texts_sha256: str) -> str:
    """Return the content of `RECORD` for the files of an index."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.name != RECORD):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"texts {texts_sha256}\nfiles {digest.hexdigest()}\n"


def _spaced(text: str) -> str:
    """Return the text with every run of an unspaced script as pairs of characters."""
    return _RUN.sub(lambda run: " ".join(("", *map("".join, pairwise(run[0])), "")), text)


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Return the words of each text that BM25 counts."""
    words: list[list[str]] = without_jax().tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return words
