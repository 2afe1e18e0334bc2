"""Choose demonstrations for each question: the labelled examples nearest to it, most similar last."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy

from crossover.models.errors import UserError
from crossover.programs.demos import question_key, with_demos
from crossover.programs.retrieval.base import Passage, Retriever
from crossover.programs.retrieval.dense import Dense
from crossover.programs.retrieval.load import load_retriever

INDEXES = ("bm25", "dense", "weaviate")
BM25 = "bm25"


def demo_index(backend: str, options: Mapping[str, Any] | None, folder: Path | None = None) -> Retriever:
    """Return an empty index of demonstrations, with options as under `retrieval` in an experiment file.

    Raises:
        UserError: the index does not exist, or lacks an option.
    """
    if backend not in INDEXES:
        raise UserError(f"index {backend!r} is not one of {', '.join(INDEXES)}; set `index: bm25`")
    try:
        return load_retriever(backend, options or {}, folder)
    except TypeError as e:
        what = f"`index_options` {dict(options or {})} are not those of {backend}"
        raise UserError(f"{what}; see `retrieval` in the README") from e


class NearestDemos(dspy.Module):  # type: ignore[misc]  # dspy.Module is untyped
    """Answer with the demonstrations nearest to the question, after those that the program shows for every question.

    All of them are saved with the program, and so are their vectors; a Weaviate index stays on its server, named by a
    hash of its content.
    """

    def __init__(
        self,
        program: dspy.Module,
        pool: Sequence[dspy.Example],
        demos: int,
        fits: Callable[[dspy.Module, dict[str, Any]], bool],
        *,
        index: str = BM25,
        options: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Index the pool; `fits` tests whether a program's prompt for given inputs fits the context.

        `folder` caches vectors by content, for other pools of the same examples.
        """
        super().__init__()
        # Refuses a pool that cannot be shown here, and not at every question.
        with_demos(program, pool[:1])
        self.program = program
        self.demos = demos
        self._fits = fits
        rows = [e.toDict() for e in pool]
        self._set_pool(rows, [list(e.inputs().keys()) for e in pool], {"backend": index, "options": options}, folder)

    def _set_pool(
        self,
        rows: list[dict[str, Any]],
        inputs: list[list[str]],
        index: Mapping[str, Any],
        folder: Path | None = None,
    ) -> None:
        """Replace the pool, and load the index that was saved with it or build a new one."""
        self.pool = [dspy.Example(**r).with_inputs(*names) for r, names in zip(rows, inputs, strict=True)]
        self._keys = [question_key(e.inputs().toDict()) for e in self.pool]
        self._backend, self._options = str(index["backend"]), dict(index.get("options") or {})
        passages = [Passage(str(n), self._text(e.inputs().toDict())) for n, e in enumerate(self.pool)]
        options = self._options
        if self._backend == "weaviate":
            # Every seed and size of train is another pool: they must not replace each other under one name.
            texts = "\n".join(p.text for p in passages).encode("utf-8", "surrogatepass")
            named = [str(options["collection"])] if options.get("collection") else []
            name = "_".join(["demos", *named, hashlib.sha256(texts).hexdigest()[:12]])
            options = options | {"collection": name}
        self._index = demo_index(self._backend, options, folder)
        if isinstance(self._index, Dense) and index.get("vectors"):
            self._index.load_vectors([p.id for p in passages], base64.b64decode(index["vectors"]))
        else:
            self._index.index(passages)

    def __deepcopy__(self, memo: dict[int, Any]) -> "NearestDemos":
        """Copy the inner program; the index never changes and is shared."""
        copy = NearestDemos.__new__(NearestDemos)
        copy.__dict__.update(self.__dict__)
        copy.program = self.program.deepcopy()
        return copy

    @staticmethod
    def _text(inputs: dict[str, Any]) -> str:
        return " ".join(str(v) for k, v in inputs.items() if k != "passages")

    def nearest(self, inputs: dict[str, Any]) -> list[dspy.Example]:
        """Return the nearest examples, most similar last; never one that asks the same question."""
        asked = question_key(inputs)
        # More than are shown, as some may ask the same question.
        hits = self._index.search([self._text(inputs)], k=min(len(self.pool), 2 * self.demos + 8))[0]
        others = [self.pool[int(n)] for n, _ in hits if self._keys[int(n)] != asked]
        return others[: self.demos][::-1]

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Answer one question; the least similar demonstrations are left out if the prompt is too long."""
        demos = self.nearest(inputs)
        while demos and not self._fits(self._showing(demos), inputs):
            demos = demos[max(1, len(demos) // 8) :]
        return self._showing(demos)(**inputs)

    def _showing(self, demos: list[dspy.Example]) -> dspy.Module:
        """Copy the program and add these demonstrations after its own."""
        adapted = with_demos(self.program, demos)
        for predictor, fixed in zip(adapted.predictors(), self.program.predictors(), strict=True):
            predictor.demos = [*fixed.demos, *predictor.demos]
        return adapted

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the inner program's state, the whole pool and its index."""
        index: dict[str, Any] = {"backend": self._backend, "options": self._options}
        if isinstance(self._index, Dense) and self.pool:
            index["vectors"] = base64.b64encode(self._index.dump_vectors()).decode()
        return {
            "program": self.program.dump_state(json_mode),
            "demos": self.demos,
            "pool": [{k: v for k, v in e.toDict().items()} for e in self.pool],
            "inputs": [list(e.inputs().keys()) for e in self.pool],
            "index": index,
        }

    def load_state(self, state: dict[str, Any], **options: Any) -> None:
        """Restore a state of `dump_state`."""
        self.program.load_state(state["program"], **options)
        self.demos = int(state["demos"])
        self._set_pool(state["pool"], state["inputs"], state.get("index") or {"backend": BM25})
