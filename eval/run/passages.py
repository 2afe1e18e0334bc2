"""Retrieve the passages of every question once, for all arms alike."""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from crossover.eval.experiment.spec import Retrieval
from crossover.eval.experiment.splits import question_text
from crossover.models.jsonl import append_lines
from crossover.programs.retrieval.base import Hits, Retriever, silent
from crossover.programs.retrieval.chunks import chunked
from crossover.programs.retrieval.load import load_retriever
from crossover.programs.retrieval.ranking import Ranking, rank_quality
from crossover.programs.task import Task


@dataclass
class Index:
    """One backend over one corpus, built when the first question needs it, shared by every k."""

    retriever: Retriever
    task: Task
    chunk_words: int
    progress: Callable[[str], None] = silent
    _ready: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        """Cut the corpus into chunks."""
        self.corpus, self.parent = chunked(self.task.corpus, self.chunk_words)

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """Return the hits of each question."""
        self.build()
        return self.retriever.search(questions, k)

    def build(self) -> None:
        """Index the corpus, once.

        Raises:
            UserError: the backend cannot be used.
        """
        with self._lock:
            if not self._ready:
                self.retriever.index(self.corpus, self.progress)
                self._ready = True


def identity_of(index: Index | None) -> str:
    """Return the backend's identity: whatever changes its hits and is not in the experiment file."""
    return "" if index is None else index.retriever.identity()


class Indexes:
    """The indexes of a run: one for each task, backend, options and chunk size; every k shares it."""

    def __init__(self, store: Path, progress: Callable[[str], None] = silent) -> None:
        """Build nothing yet; indexes and hits are kept in the store."""
        self.store, self.progress = store, progress
        self._made: dict[tuple[str, str], Index] = {}

    def of(self, task: Task, retrieval: Retrieval | None) -> Index | None:
        """Return the index, the same one for the same task and backend; None where nothing can be retrieved."""
        if retrieval is None or not task.corpus:
            return None
        facts = {k: v for k, v in retrieval.facts().items() if k != "k"}
        key = (task.name, json.dumps(facts, sort_keys=True))
        if key not in self._made:
            retriever = load_retriever(retrieval.backend, retrieval.options, self.store / "index")
            self._made[key] = Index(retriever, task, retrieval.chunk_words, self.progress)
        return self._made[key]


class Passages:
    """The passages of every question of a task, retrieved once and kept in the store."""

    def __init__(self, task: Task, retrieval: Retrieval | None, indexes: Indexes) -> None:
        """Index nothing yet; without a retrieval, only `none` and `gold` can be read."""
        self.task = task
        self.k = 0 if retrieval is None else retrieval.k
        self.index = indexes.of(task, retrieval)
        self.texts = {p.id: p.render() for p in (*task.corpus, *(self.index.corpus if self.index else ()))}
        self.folder = indexes.store / "passages"
        self._retrieval = retrieval
        self._found: dict[Path, dict[str, list[str]]] = {}
        self._files: dict[int, Path] = {}
        self._lock = threading.Lock()
        self.seconds = 0.0
        """Seconds of batched searches in this process."""

    def search(self, questions: Sequence[str], depth: int | None = None) -> list[list[str]]:
        """Return the ids of the `depth` best passages for each question, k by default; the store is not consulted."""
        if self.index is None:
            return [[] for _ in questions]
        start = time.perf_counter()
        hits = self.index.search(questions, depth or self.k)
        self.seconds += time.perf_counter() - start
        return [[i for i, _ in found] for found in hits]

    def find(self, questions: Sequence[str], depth: int | None = None) -> list[list[str]]:
        """Return the same ids as `search`, read from the store for questions that were asked before."""
        depth = depth or self.k
        with self._lock:
            file = self._file(depth)
            if file not in self._found:
                self._found[file] = dict(_stored_hits(file))
            found = self._found[file]
            missing = sorted({q for q in questions if _sha256(q) not in found})
            if missing:
                hits = dict(zip(missing, self.search(missing, depth), strict=True))
                found |= {_sha256(q): ids for q, ids in hits.items()}
                # A program that searches by itself asks one question at a time: the file is added to, not rewritten.
                self.folder.mkdir(parents=True, exist_ok=True)
                lines = ({"question": q, "question_sha256": _sha256(q), "ids": ids} for q, ids in hits.items())
                append_lines(file, lines)
            return [found[_sha256(q)] for q in questions]

    def _file(self, depth: int) -> Path:
        """Return the file of the hits at this depth."""
        if depth in self._files:
            return self._files[depth]
        facts: dict[str, Any] = {} if self._retrieval is None else self._retrieval.facts()
        facts |= {"k": depth, "identity": identity_of(self.index), "corpus": sorted(self.texts.items())}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        self._files[depth] = self.folder / f"{facts.get('backend', 'none')}-k{depth}-{digest[:16]}.jsonl"
        return self._files[depth]

    def ids(self, examples: Sequence[dspy.Example], knowledge: str) -> list[list[str]]:
        """Return the passage ids of each example under a kind of knowledge."""
        if knowledge == "none" or not self.task.corpus:
            return [[] for _ in examples]
        gold = [_gold(e) for e in examples]
        if knowledge == "gold":
            return gold
        questions = [question_text(e) for e in examples]
        if knowledge == "retrieved":
            return self.find(questions)
        # The chunks of gold passages are no distractors, so the search must go deeper by their number.
        chunks = Counter(() if self.index is None else self.index.parent.values())
        deep = self.find(questions, self.k + max((sum(chunks[i] for i in set(g)) for g in gold), default=0))
        return [self._noisy(str(e["id"]), g, found) for e, g, found in zip(examples, gold, deep, strict=True)]

    def _noisy(self, key: str, gold: Sequence[str], found: Sequence[str]) -> list[str]:
        """Return the gold passages and the k best others, ordered by a hash of the example's id."""
        others = [i for i in found if self._parent(i) not in gold][: self.k]
        return sorted([*gold, *others], key=lambda i: hashlib.sha256(f"{key}:{i}".encode()).hexdigest())

    def _parent(self, i: str) -> str:
        """Return the passage of the corpus that a chunk was cut from."""
        return i if self.index is None else self.index.parent.get(i, i)

    def attach(self, examples: Sequence[dspy.Example], knowledge: str) -> list[dspy.Example]:
        """Return the examples with their passages as an input; without a corpus they stay as they are."""
        if not self.task.corpus:
            return list(examples)
        inputs = [*self.task.inputs, "passages"]
        return [
            e.copy(passages=[self.texts[i] for i in ids]).with_inputs(*dict.fromkeys(inputs))
            for e, ids in zip(examples, self.ids(examples, knowledge), strict=True)
        ]

    def ranking(self, examples: Sequence[dspy.Example], knowledge: str) -> Ranking | None:
        """Return the retrieval quality of the passages shown; None where no example names gold passages."""
        if not self.task.corpus:
            return None
        shown = [[self._parent(i) for i in ids] for ids in self.ids(examples, knowledge)]
        return rank_quality(shown, [_gold(e) for e in examples])

    def hits(self, examples: Sequence[dspy.Example], knowledge: str) -> dict[str, bool]:
        """Return, for the examples that name gold passages, whether all of them are among those shown."""
        if not self.task.corpus:
            return {}
        return {
            str(e["id"]): gold <= {self._parent(i) for i in ids}
            for e, ids in zip(examples, self.ids(examples, knowledge), strict=True)
            if (gold := set(_gold(e)))
        }

    def live(self, knowledge: str, *, kept: bool = True) -> Callable[..., list[Any]] | None:
        """Return a retriever for `dspy.settings.rm`, for programs that write their own queries.

        It has the interface of DSPy's retrievers. Unless `kept`, every query is searched anew. None unless knowledge is
        `retrieved`: a program must not retrieve what its arm may not read.
        """
        if self.index is None or knowledge != "retrieved":
            return None
        find = self.find if kept else self.search

        def search(query: str, k: int | None = None, **ignored: Any) -> list[Any]:
            return [dspy.Prediction(long_text=self.texts[i]) for i in find([query], k)[0]]

        return search


def _stored_hits(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the hash of each question of a file with the ids of its passages.

    A line that a kill tore is searched for again.
    """
    for line in file.read_bytes().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            hit = json.loads(line)
            yield str(hit["question_sha256"]), [str(i) for i in hit["ids"]]


def _sha256(question: str) -> str:
    """Return the hash by which a question is found again: its text may hold what no store keeps, and is cut out."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()


def _gold(example: dspy.Example) -> list[str]:
    """Return the ids of the example's gold passages."""
    return [str(g) for g in example.get("gold", [])]
