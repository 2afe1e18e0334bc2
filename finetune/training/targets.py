"""Where training text comes from: gold answers, a teacher's, or the model's own that score 1 (rejection sampling).

Programs of several steps are run and traced by DSPy, and each predictor's call becomes a row. What was built is kept by
its content: never built twice for the same program, examples, model and metric.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dspy

from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.programs.demos import fields_of
from crossover.programs.score import Row, score_examples
from crossover.programs.task import Budget, Metric

WARM = 1.0
"""Temperature of every attempt after the first."""


@dataclass(frozen=True)
class Call:
    """One call of one predictor, to be learnt."""

    example: str
    """Id of the example."""
    predictor: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]


@dataclass
class Targets:
    """What is to be learnt, and what it cost to get."""

    calls: list[Call]
    spent: Usage = field(default_factory=Usage)
    solved: int = 0
    """Examples with a trace that scored 1, or with a gold answer."""
    teacher_usd: float | None = 0.0


class Tracer(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Run a program and keep the calls of its predictors, by the inputs that it was asked with."""

    def __init__(self, program: dspy.Module) -> None:
        """Trace a copy of the program."""
        super().__init__()
        self.program = program.deepcopy()
        self.names = {id(p): name for name, p in self.program.named_predictors()}
        self.kept: dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]] = {}

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return what the program returns."""
        with dspy.context(trace=[]):
            prediction = self.program(**inputs)
            trace = list(dspy.settings.trace)
        self.kept[_asked(inputs)] = [
            (
                self.names[id(p)],
                {k: given[k] for k in p.signature.input_fields if k in given},
                {k: answer[k] for k in p.signature.output_fields},
            )
            for p, given, answer in trace
            if id(p) in self.names
        ]
        return prediction

    def calls(self, example: dspy.Example) -> list[Call]:
        """Return the calls that answered an example."""
        return [Call(str(example["id"]), *call) for call in self.kept[_asked(example.inputs().toDict())]]


def _asked(inputs: dict[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True, default=str)


def targets_of(
    source: str,
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    *,
    metric: Metric,
    lm: dspy.LM,
    budget: Budget,
    attempts: int,
) -> Targets:
    """Return what is to be learnt from the examples; the program may show demonstrations to whoever answers.

    Raises:
        UserError: there is no teacher, an example lacks a field, or nothing scored 1.
    """
    single = len(program.named_predictors()) == 1
    if source == "gold" and single:
        return Targets(gold_calls(program, examples), solved=len(examples))
    if source == "teacher" and budget.teacher is None:
        raise UserError("sft targets 'teacher' without a teacher; add `teacher: openai/…` to the experiment file")
    asked = budget.teacher if source == "teacher" and budget.teacher is not None else lm
    frame = budget.teacher_format if source == "teacher" else dspy.settings.adapter
    facts = [
        source,
        attempts,
        asked.model,
        asked.kwargs.get("max_tokens"),
        type(frame).__name__,
        program.dump_state(),
        [e.toDict() for e in examples],
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    # What a program finds by queries of its own depends on the retriever, which only the cell's folder stands for.
    own = budget.checkpoints or budget.workdir
    file = (own if budget.shared is None or dspy.settings.rm is not None else budget.shared) / f"{key}.json"
    if (targets := _read(file)) is None:
        with dspy.context(lm=asked, adapter=frame):
            targets = _sample(source, program, examples, metric, asked, budget, attempts)
        _write(file, targets)
    if not targets.calls:
        raise UserError(
            f"none of {len(examples)} train examples was answered with a score of 1 by {asked.model}, so that sft has "
            "nothing to learn from; use `targets: gold`, a better teacher, or more `attempts`"
        )
    return targets


def gold_calls(program: dspy.Module, examples: Sequence[dspy.Example]) -> list[Call]:
    """Return the call of the program's one predictor for each example, answered as the data says."""
    name, predictor = program.named_predictors()[0]
    calls = []
    for e in examples:
        if (demo := fields_of(e, predictor)) is None:
            missing = sorted(set(predictor.signature.fields) - set(e.keys()))
            raise UserError(f"train example {e['id']} lacks {', '.join(missing)}; add it to the data or to `fields`")
        inputs = {k: v for k, v in demo.items() if k in predictor.signature.input_fields}
        outputs = {k: v for k, v in demo.items() if k in predictor.signature.output_fields}
        calls.append(Call(str(e["id"]), name, inputs, outputs))
    return calls


def _sample(
    source: str,
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    metric: Metric,
    lm: dspy.LM,
    budget: Budget,
    attempts: int,
) -> Targets:
    """Answer the examples until each has a trace that scores 1, or its attempts are used up."""
    from crossover.models.price import api_price
    from crossover.models.prompt import engine_of

    local, start = engine_of(lm) is not None, time.perf_counter()
    tracer, targets = Tracer(program), Targets([])
    left, found = list(examples), dict[str, list[Call]]()
    for attempt in range(attempts):
        warm = lm if attempt == 0 else lm.copy(temperature=WARM)
        with dspy.context(lm=warm):
            rows = list(
                score_examples(
                    tracer, left, metric, threads=budget.threads, price=(lambda usage: 0.0) if local else api_price
                )
            )
        targets.spent += spent_on_answers(rows)
        scores = {r.id: r.score for r in rows}
        for e in left:
            right = scores[str(e["id"])] == 1.0
            if right or (source == "gold" and attempt == attempts - 1 and scores[str(e["id"])] is not None):
                found[str(e["id"])] = [c for c in tracer.calls(e) if right or source == "gold"]
        targets.solved += sum(scores[str(e["id"])] == 1.0 for e in left)
        left = [e for e in left if scores[str(e["id"])] != 1.0]
        budget.progress(f"targets: {targets.solved} of {len(examples)} examples after {attempt + 1} attempts")
        if not left:
            break
    wrong = {str(e["id"]) for e in left}
    for e in examples:
        calls = found.get(str(e["id"]), [])
        targets.calls += _with_gold(tracer.program, e, calls, str(e["id"]) in wrong) if source == "gold" else calls
    targets.spent.seconds = time.perf_counter() - start
    targets.teacher_usd = targets.spent.usd if source == "teacher" else 0.0
    return targets


def _with_gold(program: dspy.Module, example: dspy.Example, calls: Sequence[Call], wrong: bool) -> list[Call]:
    """Return a trace whose answers are the data's where it has them; the other steps count only if all went well."""
    signatures = {name: p.signature for name, p in program.named_predictors()}
    kept = []
    for c in calls:
        known = {k: example[k] for k in signatures[c.predictor].output_fields if k in example}
        if len(known) == len(c.outputs):
            first = {k: v[0] if isinstance(v, list) and v else v for k, v in known.items()}
            kept.append(Call(c.example, c.predictor, c.inputs, first))
        elif not wrong:
            kept.append(c)
    return kept


def spent_on_answers(rows: Sequence[Row]) -> Usage:
    """Return the calls, tokens and dollars of answers; their seconds overlap and are measured outside."""
    dollars = [r.usd for r in rows]
    return Usage(
        calls=sum(r.calls for r in rows),
        prompt_tokens=sum(r.prompt_tokens for r in rows),
        cached_tokens=sum(r.cached_tokens for r in rows),
        completion_tokens=sum(r.completion_tokens for r in rows),
        usd=None if None in dollars else sum(d for d in dollars if d is not None),
        metric_calls=len(rows),
    )


def _read(file: Path) -> Targets | None:
    """Return what an earlier fit built; its price is this one's too, for it would have paid it."""
    if not file.exists():
        return None
    data = json.loads(file.read_text(encoding="utf-8"))
    return Targets([Call(**c) for c in data["calls"]], Usage(**data["spent"]), int(data["solved"]), data["teacher_usd"])


def _write(file: Path, targets: Targets) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.part")
    draft.write_text(json.dumps(asdict(targets), ensure_ascii=False, default=str), encoding="utf-8")
    draft.replace(file)
