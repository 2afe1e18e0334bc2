"""Run a DSPy optimizer with its calls counted, its budget enforced and its best candidate on val returned.

DSPy's optimizers evaluate candidates by `dspy.Evaluate`; a callback records each program that was scored on the whole
of val, so that a search that runs out of budget still returns the best candidate so far.
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

from crossover.models.errors import UserError
from crossover.models.meter import BudgetSpent, Meter
from crossover.models.prompt_formats import TwoFormats
from crossover.models.usage import Usage
from crossover.programs.demos import list_outputs
from crossover.programs.score import mean_score, score_examples
from crossover.programs.task import Budget, FitFacts, Fitted, Metric

NO_OUTPUT = ("id", "gold", "cluster", "passages")
"""Fields of an example beside its inputs and outputs."""
UNLIMITED_ERRORS = sys.maxsize
"""For DSPy's `max_errors`: by default it gives up after ten failed answers, which here are wrong answers."""


class CountedMetric:
    """The task's metric, with its calls counted and limited."""

    def __init__(self, metric: Metric, limit: int | None, meter: Meter) -> None:
        """Allow `limit` calls, None for any number; the meter is stopped after them."""
        self.metric, self.limit, self.meter, self.calls = metric, limit, meter, 0
        self.originals: dict[str, dspy.Example] = {}
        """By id, the examples with all their right answers: optimizers are given copies with one."""
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
            if self.limit is not None and self.calls >= self.limit:
                self.meter.stop(f"{self.limit} metric calls")
                raise BudgetSpent(self.meter.stopped)
            self.calls += 1
        return float(self.metric(self.originals.get(str(gold.get("id")), gold), pred, trace))


class _ScoreRecorder(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """Record the programs that DSPy evaluates, and their scores on val."""

    def __init__(self, val: Sequence[dspy.Example]) -> None:
        self.val = {id(e) for e in val}
        self.scored: list[tuple[dspy.Module, float]] = []
        """Programs that were scored on all of val."""
        self.partly_scored: set[str] = set()
        """States of programs that were scored on other examples or on fewer."""
        self._open: dict[str, dspy.Module] = {}

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        devset = inputs.get("devset") or instance.devset
        if len(devset) == len(self.val) and all(id(e) in self.val for e in devset):
            # The optimizer may go on to change the program in place.
            self._open[call_id] = inputs["program"].deepcopy()
        else:
            self.partly_scored.add(_state(inputs["program"]))

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        program = self._open.pop(call_id, None)
        if program is not None and outputs is not None:
            self.scored.append((program, float(outputs.score) / 100))


class Search:
    """One search: enter it to run a DSPy optimizer and set `compiled`, then return `fitted()`."""

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
        """Prepare the metered models and the limited metric; nothing is called yet."""
        self.program, self.val, self.lm, self.seed, self.budget = program, list(val), lm, seed, budget
        self.meter = Meter(usd=budget.usd, file=budget.answers, seed=seed, ends_when_refused=True)
        self.metric = CountedMetric(metric, budget.metric_calls, self.meter)
        self.student = self.meter.metered(lm)
        self.teacher = self.student if budget.teacher is None else self.meter.metered(budget.teacher)
        self.compiled: dspy.Module | None = None
        """The program that the optimizer returned; None if it was stopped before."""
        self.warnings: list[str] = []
        self.recorder = _ScoreRecorder(self.val)
        self.adapter: dspy.Adapter = dspy.settings.adapter or dspy.ChatAdapter()
        if budget.teacher is not None:
            self.adapter = TwoFormats(self.adapter, budget.teacher_format or dspy.ChatAdapter(), self.teacher)
        self._exit = contextlib.ExitStack()

    @property
    def left(self) -> int | None:
        """Return the metric calls that are left, or None without a limit."""
        return None if self.metric.limit is None else max(0, self.metric.limit - self.metric.calls)

    @property
    def teacher_format(self) -> dspy.Adapter:
        """Return the DSPy adapter of the model that proposes."""
        return self.adapter.teacher if isinstance(self.adapter, TwoFormats) else self.adapter

    def examples(self, train: Sequence[dspy.Example]) -> list[dspy.Example]:
        """Return train in the form that DSPy can show, one right answer each; the metric still accepts all of them.

        An answer that is a list, to a field whose type is a list, stays whole.
        """
        single, whole = [], {*NO_OUTPUT, *list_outputs(self.program)}
        for e in train:
            lists = {k: v[0] for k, v in e.labels().items() if isinstance(v, list) and v and k not in whole}
            self.metric.originals[str(e["id"])] = e
            single.append(e.copy(**lists) if lists else e)
        return single

    def affordable(self, order: Sequence[dspy.Example], *, passes: int) -> list[dspy.Example]:
        """Return the leading examples that so many passes can score for a quarter of the metric calls left.

        DSPy bootstraps until the metric has accepted enough answers: if it accepts none, over all of train.
        """
        return self.examples(order if self.left is None else order[: max(4, self.left // (4 * max(1, passes)))])

    @property
    def threads(self) -> int:
        """Return the number of calls that may run at once."""
        return self.budget.threads

    def __enter__(self) -> "Search":
        """Enter the optimizer's context: the metered model, no output, a random state of its own."""
        state = random.getstate()
        self._exit.callback(random.setstate, state)
        # Some of DSPy's optimizers draw from the global generator.
        random.seed(self.seed)
        self._exit.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self._exit.enter_context(contextlib.redirect_stderr(io.StringIO()))
        settings = {"callbacks": [*dspy.settings.callbacks, self.recorder], "num_threads": self.threads}
        self._exit.enter_context(dspy.context(lm=self.student, adapter=self.adapter, **settings))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        """Leave the context; a spent budget or an error of the optimizer becomes a warning, and the fit goes on."""
        self._exit.close()
        if isinstance(error, BudgetSpent):
            self.warnings.append(f"the budget ended the search: {error}")
            return True
        if isinstance(error, Exception):
            # Some of DSPy's errors have no text of their own.
            shown = error if str(error).strip() else error.__cause__ or error.__context__ or error
            reason = (str(shown).strip().splitlines() or [""])[0][:200]
            self.warnings.append(f"the search broke off: {type(shown).__name__}: {reason}")
            return True
        return False

    def score_start(self) -> None:
        """Score the program as it was given, for an optimizer that does not do so itself."""
        if (score := self.score(self.program)) is not None:
            self.recorder.scored.append((self.program, score))

    def score(self, program: dspy.Module) -> float | None:
        """Return the mean score on val, or None if the budget is too small."""
        if self.left is not None and self.left < len(self.val):
            return None
        try:
            with dspy.context(lm=self.student):
                return mean_score(list(score_examples(program, self.val, self.metric, threads=self.threads)))
        except BudgetSpent:
            return None

    def fitted(self, *, zero_shot: bool = False) -> Fitted:
        """Return the best program on val: the program that was given, unless a candidate beats it.

        With `zero_shot`, candidates that show demonstrations are left out.
        """
        scored = [(p, s) for p, s in self.recorder.scored if not zero_shot or not _has_demos(p)]
        known = {_state(p): s for p, s in reversed(scored)}
        start = known.get(_state(self.program))
        if start is None and (self.compiled is not None or scored):
            start = self.score(self.program)
        unscored = self.compiled is not None and _state(self.compiled) not in known
        if self.compiled is not None and unscored and (score := self.score(self.compiled)) is not None:
            scored.append((self.compiled, score))
        best, best_score = self.program, start
        for candidate, score in scored:
            if best_score is None or score > best_score:
                best, best_score = candidate, score
        tried = len({_state(p) for p, _ in scored} - {_state(self.program)})
        if _state(best) == _state(self.program):
            self.warnings.append(self._why_unchanged(tried))
        notes = {
            "candidates": tried,
            "val_scores": [round(s, 4) for _, s in scored],
            "val_start": start,
            "val_best": best_score,
        }
        facts = FitFacts(zero_shot=zero_shot, val_score=best_score)
        return self._charged(Fitted(_clean(best), self.lm, Usage(), None, facts, notes, list(self.warnings)))

    def unselected(self) -> Fitted:
        """Return the optimizer's program without reading val, or the given one if the optimizer was stopped."""
        program = self.program if self.compiled is None else self.compiled
        return self._charged(Fitted(_clean(program), self.lm, Usage(), warnings=list(self.warnings)))

    def _why_unchanged(self, tried: int) -> str:
        """Explain why the program is as it was given, after so many candidates were scored on val."""
        partly_scored = len(self.recorder.partly_scored - {_state(self.program)})
        if tried:
            return f"none of {tried} candidates beat the program as it was given on val"
        if partly_scored:
            return f"none of {partly_scored} candidates did well enough on a few examples to be tried on val"
        if self.compiled is None:
            return "no proposal could be tried: the program is as it was given"
        if _state(self.compiled) == _state(self.program):
            return "the search ended where it began"
        return "the budget was too small to score the new program on val: nothing was changed"

    def _charged(self, fitted: Fitted) -> Fitted:
        """Close the meter and charge its counts to the method.

        Raises:
            UserError: no call was answered.
        """
        self.meter.close()
        total = self.meter.total
        if self.meter.last_failure and not total.calls:
            raise UserError(f"all calls failed: {self.meter.last_failure}")
        fitted.spent += replace(total, seconds=self.meter.seconds, metric_calls=self.metric.calls)
        if self.teacher is not self.student:
            counts = self.meter.by_model.get(self.teacher.model, Usage())
            fitted.facts = replace(
                fitted.facts, teacher=self.teacher.model, teacher_calls=counts.calls, teacher_usd=counts.usd
            )
            if self.meter.last_failure and not counts.calls:
                fitted.warnings.append(f"no call of the teacher was answered: {self.meter.last_failure}")
        if self.meter.replayed:
            fitted.notes["replayed_calls"] = self.meter.replayed
        if self.budget.usd is not None and total.usd is None:
            fitted.warnings.append("a price is unknown, so that the dollars of the budget could not be kept")
        return fitted


def _has_demos(program: dspy.Module) -> bool:
    return any(p.demos for p in program.predictors())


def _clean(program: dspy.Module) -> dspy.Module:
    """Copy a program and leave in its demonstrations only the fields that a prompt shows."""
    copy = program.deepcopy()
    for predictor in copy.predictors():
        fields = predictor.signature.fields
        predictor.demos = [{k: v for k, v in d.items() if k in fields} for d in predictor.demos]
    # A chain may optimize it further, which DSPy refuses for a compiled program.
    copy._compiled = False
    return copy


def _state(program: dspy.Module) -> str:
    """Return instructions, fields and demonstrations as text: programs with equal text have equal prompts."""
    state = {
        name: [p.signature.instructions, [f.json_schema_extra for f in p.signature.fields.values()], p.demos]
        for name, p in _clean(program).named_predictors()
    }
    return json.dumps(state, sort_keys=True, default=str)
