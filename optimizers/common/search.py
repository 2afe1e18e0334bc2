"""What every search over prompts shares: the models counted, the budget kept, the candidates noted, the best chosen.

DSPy's optimizers evaluate candidates by `dspy.Evaluate`; a callback notes each program that was scored on the whole of
val, so that a search that runs out of budget still returns the best that it has seen.
"""

import contextlib
import io
import json
import random
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from crossover.models.meter import BudgetSpent, Meter
from crossover.models.prompt_formats import TwoFormats
from crossover.models.usage import Usage
from crossover.programs.score import mean_score, score_examples
from crossover.programs.task import Budget, Fitted, Metric

NO_OUTPUT = ("id", "gold", "cluster", "passages")
"""What an example holds beside inputs and outputs."""
NO_BOUND = sys.maxsize
"""Of the answers that may fail: DSPy gives up after ten, where a failed answer is a wrong one."""


class CountedMetric:
    """The task's metric, counted, and refused beyond the budget."""

    def __init__(self, metric: Metric, most: int | None, meter: Meter) -> None:
        """Allow `most` calls, None for any number, and stop the meter after them."""
        self.metric, self.most, self.meter, self.calls = metric, most, meter, 0
        self.originals: dict[str, dspy.Example] = {}
        """Example id to the example with all its right answers, where an optimizer is given one with a single."""
        self._lock = threading.Lock()

    def __call__(
        self,
        gold: dspy.Example,
        pred: dspy.Prediction,
        trace: Any = None,
        pred_name: Any = None,
        pred_trace: Any = None,
    ) -> float:
        """Return the score.

        Raises:
            BudgetSpent: the metric calls are used up.
        """
        with self._lock:
            if self.most is not None and self.calls >= self.most:
                self.meter.stop(f"{self.most} metric calls")
                raise BudgetSpent(self.meter.stopped)
            self.calls += 1
        return float(self.metric(self.originals.get(str(gold.get("id")), gold), pred, trace))


class _Journal(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """The programs that DSPy scored on all of val, with their scores, and those that it scored on less."""

    def __init__(self, val: Sequence[dspy.Example]) -> None:
        self.val = {id(e) for e in val}
        self.scored: list[tuple[dspy.Module, float]] = []
        self.glanced: set[str] = set()
        self._open: dict[str, dspy.Module] = {}

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        devset = inputs.get("devset") or instance.devset
        if len(devset) == len(self.val) and all(id(e) in self.val for e in devset):
            # The optimizer may go on to change the program in place.
            self._open[call_id] = inputs["program"].deepcopy()
        else:
            self.glanced.add(_state(inputs["program"]))

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        program = self._open.pop(call_id, None)
        if program is not None and outputs is not None:
            self.scored.append((program, float(outputs.score) / 100))


class Search:
    """One search: enter it to run a DSPy optimizer, then ask for what it came to."""

    def __init__(
        self,
        program: dspy.Module,
        *,
        val: Sequence[dspy.Example],
        metric: Metric,
        lm: dspy.LM,
        seed: int,
        budget: Budget,
    ) -> None:
        """Prepare; nothing is called yet."""
        self.program, self.val, self.lm, self.seed, self.budget = program, list(val), lm, seed, budget
        self.meter = Meter(usd=budget.usd, file=budget.answers, seed=seed)
        self.metric = CountedMetric(metric, budget.metric_calls, self.meter)
        self.student = self.meter.metered(lm)
        self.teacher = self.student if budget.teacher is None else self.meter.metered(budget.teacher)
        self.found: dspy.Module | None = None
        """What the optimizer returned."""
        self.warnings: list[str] = []
        self.journal = _Journal(self.val)
        self.adapter: dspy.Adapter = dspy.settings.adapter or dspy.ChatAdapter()
        if budget.teacher is not None:
            frame = budget.teacher_format or dspy.ChatAdapter()
            self.adapter = TwoFormats(self.adapter, frame, self.teacher)
        self._exit = contextlib.ExitStack()

    @property
    def left(self) -> int | None:
        """Return the metric calls that are left, None without a bound."""
        return None if self.metric.most is None else max(0, self.metric.most - self.metric.calls)

    @property
    def teacher_format(self) -> dspy.Adapter:
        """Return the prompt frame of the model that proposes."""
        return self.adapter.teacher if isinstance(self.adapter, TwoFormats) else self.adapter

    def examples(self, train: Sequence[dspy.Example]) -> list[dspy.Example]:
        """Return train as DSPy can show it: of several right answers the first; the metric still takes any."""
        single = []
        for e in train:
            lists = {k: v[0] for k, v in e.labels().items() if isinstance(v, list) and v and k not in NO_OUTPUT}
            self.metric.originals[str(e["id"])] = e
            single.append(e.copy(**lists) if lists else e)
        return single

    def sparing(self, order: Sequence[dspy.Example], *, readings: int) -> list[dspy.Example]:
        """Return as many leading examples as `readings` passes over them may score for a quarter of what is left.

        DSPy bootstraps until the metric has accepted enough: over all of train, where it accepts nothing.
        """
        return self.examples(order if self.left is None else order[: max(4, self.left // (4 * max(1, readings)))])

    @property
    def threads(self) -> int:
        """Return how many calls may run at once."""
        return self.budget.threads

    def __enter__(self) -> "Search":
        """Set the context in which the optimizer runs: the counted model, no output, its own random state."""
        state = random.getstate()
        self._exit.callback(random.setstate, state)
        # Some of DSPy's optimizers draw from the global generator.
        random.seed(self.seed)
        self._exit.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self._exit.enter_context(contextlib.redirect_stderr(io.StringIO()))
        settings = {"callbacks": [*dspy.settings.callbacks, self.journal], "num_threads": self.threads}
        self._exit.enter_context(dspy.context(lm=self.student, adapter=self.adapter, **settings))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        """Leave the context; a spent budget or a failure of the optimizer ends the search, not the fit."""
        self._exit.close()
        if isinstance(error, BudgetSpent):
            self.warnings.append(f"the budget ended the search: {error}")
            return True
        if isinstance(error, Exception):
            told = error if str(error).strip() else error.__cause__ or error.__context__ or error
            reason = (str(told).strip().splitlines() or [""])[0][:200]
            self.warnings.append(f"the search broke off: {type(told).__name__}: {reason}")
            return True
        return False

    def score_start(self) -> None:
        """Score the program as it was given, for an optimizer that does not do so itself."""
        if (score := self.score(self.program)) is not None:
            self.journal.scored.append((self.program, score))

    def score(self, program: dspy.Module) -> float | None:
        """Return the mean score on val, None when the budget does not reach."""
        if self.left is not None and self.left < len(self.val):
            return None
        try:
            with dspy.context(lm=self.student):
                return mean_score(list(score_examples(program, self.val, self.metric, threads=self.threads)))
        except BudgetSpent:
            return None

    def fitted(self, **notes: Any) -> Fitted:
        """Return the best program on val: what the optimizer found, if it beats the program that was given."""
        scored = [(p, s) for p, s in self.journal.scored if not notes.get("zero_shot") or not _shows(p)]
        known = {_state(p): s for p, s in reversed(scored)}
        start = known.get(_state(self.program))
        if start is None and (self.found is not None or scored):
            start = self.score(self.program)
        unscored = self.found is not None and _state(self.found) not in known
        if self.found is not None and unscored and (score := self.score(self.found)) is not None:
            scored.append((self.found, score))
        best, best_score = self.program, start
        for candidate, score in scored:
            if best_score is None or score > best_score:
                best, best_score = candidate, score
        tried = len({_state(p) for p, _ in scored} - {_state(self.program)})
        self._judge(_state(best) == _state(self.program), tried)
        notes |= {
            "candidates": tried,
            "val_scores": [round(s, 4) for _, s in scored],
            "val_start": start,
            "val_best": best_score,
        }
        return self.spend(Fitted(_clean(best), self.lm, Usage(), notes=notes, warnings=list(self.warnings)))

    def taken(self, **notes: Any) -> Fitted:
        """Return what the optimizer found without looking at val, or the program as it was given."""
        program = self.program if self.found is None else self.found
        return self.spend(Fitted(_clean(program), self.lm, Usage(), notes=notes, warnings=list(self.warnings)))

    def _judge(self, unchanged: bool, tried: int) -> None:
        """Say it when the search came to nothing."""
        glanced = len(self.journal.glanced - {_state(self.program)})
        if unchanged and not tried and glanced:
            self.warnings.append(f"none of {glanced} candidates did well enough on a few examples to be tried on val")
        elif unchanged and not tried and self.found is not None:
            ended = "the search ended where it began"
            unscored = "the budget did not reach to score what was found on val: nothing was changed"
            self.warnings.append(ended if _state(self.found) == _state(self.program) else unscored)
        elif unchanged and not tried:
            self.warnings.append("no proposal could be tried: the program is as it was given")
        elif unchanged:
            self.warnings.append(f"none of {tried} candidates beat the program as it was given on val")

    def spend(self, fitted: Fitted) -> Fitted:
        """Close the meter and charge to the method what it counted."""
        self.meter.close()
        total = self.meter.total
        fitted.spent += replace(total, seconds=self.meter.seconds, metric_calls=self.metric.calls)
        if self.teacher is not self.student:
            counts = self.meter.by_model.get(self.teacher.model, Usage())
            fitted.notes["teacher"] = {"model": self.teacher.model, "calls": counts.calls, "usd": counts.usd}
        if self.meter.replayed:
            fitted.notes["replayed_calls"] = self.meter.replayed
        if self.budget.usd is not None and total.usd is None:
            fitted.warnings.append("a price is unknown, so that the dollars of the budget could not be kept")
        return fitted


def _shows(program: dspy.Module) -> bool:
    """Return whether the program holds a demonstration."""
    return any(p.demos for p in program.predictors())


def _clean(program: dspy.Module) -> dspy.Module:
    """Return a copy whose demonstrations hold the fields that are shown, and nothing else of the examples."""
    copy = program.deepcopy()
    for predictor in copy.predictors():
        fields = predictor.signature.fields
        predictor.demos = [{k: v for k, v in d.items() if k in fields} for d in predictor.demos]
    copy._compiled = False  # or DSPy would refuse to optimize it further
    return copy


def _state(program: dspy.Module) -> str:
    """Return what decides the program's prompts, as text."""
    state = {
        name: [p.signature.instructions, [f.json_schema_extra for f in p.signature.fields.values()], p.demos]
        for name, p in _clean(program).named_predictors()
    }
    return json.dumps(state, sort_keys=True, default=str)
