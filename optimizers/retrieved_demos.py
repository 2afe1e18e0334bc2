"""The labelled examples most similar to each question, chosen by BM25, most similar last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from models.prompt import prompt_tokens, room
from programs.demos import question_key, with_demos
from programs.retrieval.bm25 import Bm25
from programs.task import Budget, Fitted, Metric, Passage, Spent


class NearestDemos(dspy.Module):  # type: ignore[misc]  # dspy.Module is untyped
    """Answer with the demonstrations nearest to the question, after those that the program shows for every question.

    All of them are saved with the program.
    """

    def __init__(self, program: dspy.Module, pool: Sequence[dspy.Example], demos: int, fits: Any) -> None:
        """Index the pool; `fits` tells whether a program's prompt for given inputs fits the context."""
        super().__init__()
        self.program = program
        self.demos = demos
        self._fits = fits
        self._set_pool([e.toDict() for e in pool], [list(e.inputs().keys()) for e in pool])

    def _set_pool(self, rows: list[dict[str, Any]], inputs: list[list[str]]) -> None:
        self.pool = [dspy.Example(**r).with_inputs(*names) for r, names in zip(rows, inputs, strict=True)]
        self._keys = [question_key(e.inputs().toDict()) for e in self.pool]
        self._index = Bm25()
        self._index.index([Passage(str(n), self._text(e.inputs().toDict())) for n, e in enumerate(self.pool)])

    def __deepcopy__(self, memo: dict[int, Any]) -> "NearestDemos":
        """Copy the inner program and share the index, which never changes."""
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
        found = self._index.search([self._text(inputs)], k=min(len(self.pool), 2 * self.demos + 8))[0]
        others = [self.pool[int(n)] for n, _ in found if self._keys[int(n)] != asked]
        return others[: self.demos][::-1]

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Answer one question; the least similar demonstrations go when the prompt is too long."""
        demos = self.nearest(inputs)
        while demos and not self._fits(self._showing(demos), inputs):
            demos = demos[max(1, len(demos) // 8) :]
        return self._showing(demos)(**inputs)

    def _showing(self, demos: list[dspy.Example]) -> dspy.Module:
        """Return the program with these demonstrations after its own."""
        adapted = with_demos(self.program, demos)
        for predictor, fixed in zip(adapted.predictors(), self.program.predictors(), strict=True):
            predictor.demos = [*fixed.demos, *predictor.demos]
        return adapted

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the inner program's state and the whole pool."""
        return {
            "program": self.program.dump_state(json_mode),
            "demos": self.demos,
            "pool": [{k: v for k, v in e.toDict().items()} for e in self.pool],
            "inputs": [list(e.inputs().keys()) for e in self.pool],
        }

    def load_state(self, state: dict[str, Any], **options: Any) -> None:
        """Restore what `dump_state` returned."""
        self.program.load_state(state["program"], **options)
        self.demos = int(state["demos"])
        self._set_pool(state["pool"], state["inputs"])


def fits_context(lm: dspy.LM) -> Callable[[dspy.Module, dict[str, Any]], bool]:
    """Return what tells whether a program's prompt for given inputs fits the model's context."""
    free = room(lm)

    def fits(candidate: dspy.Module, inputs: dict[str, Any]) -> bool:
        question = dspy.Example(**inputs).with_inputs(*inputs)
        return not free or prompt_tokens(candidate, question, lm) <= free

    return fits


@dataclass(frozen=True)
class RetrievedDemos:
    """Nearest demonstrations (protocol: arXiv 2405.00200, BM25 over the train questions)."""

    demos: int = 8
    """Demonstrations for each question."""

    def fit(
        self,
        program: dspy.Module,
        *,
        train: Sequence[dspy.Example],
        val: Sequence[dspy.Example],
        metric: Metric,
        lm: dspy.LM,
        seed: int,
        budget: Budget,
    ) -> Fitted:
        """Index train and let every question choose its own demonstrations."""
        nearest = NearestDemos(with_demos(program, []), train, self.demos, fits_context(lm))
        return Fitted(program=nearest, lm=lm, spent=Spent(), notes={"demos": self.demos, "pool": len(train)})
