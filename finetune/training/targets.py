"""Collect the answers to learn: gold ones, a teacher's, or the model's own that score 1 (rejection sampling).

A program of several steps is run and traced by DSPy, and each call of a predictor becomes a row. Targets are cached by
their content: never built twice for the same program, examples, model and metric.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dspy
from filelock import FileLock

from crossover.finetune.training.context import FitContext
from crossover.models.answer_types import is_text
from crossover.models.engine import innermost
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json
from crossover.models.meter import Meter
from crossover.models.usage import Usage
from crossover.programs.demos import demo_of, one_answer
from crossover.programs.score import score_examples, usage_of

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
    """The calls to be learnt, and the cost of getting them."""

    calls: list[Call]
    spent: Usage = field(default_factory=Usage)
    solved: int = 0
    """Examples with a trace that scored 1, or with a gold answer."""
    teacher_usd: float | None = 0.0


Traced = tuple[str, dict[str, Any], dict[str, Any]]
"""The name, the inputs and the outputs of a predictor that was called."""


class Tracer(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Run a program and record the calls of its predictors, by the program's own inputs."""

    def __init__(self, program: dspy.Module) -> None:
        """Trace a copy of the program."""
        super().__init__()
        self.program = program.deepcopy()
        self.names = {id(p): name for name, p in self.program.named_predictors()}
        self.recorded: dict[str, list[tuple[dict[str, Any], list[Traced]]]] = defaultdict(list)
        """The answer and the calls of each run, by the inputs: several examples may ask the same."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run the program on one example."""
        with dspy.context(trace=[]):
            prediction = self.program(**inputs)
            trace = list(dspy.settings.trace)
        calls = [
            (
                self.names[id(p)],
                {k: given[k] for k in p.signature.input_fields if k in given},
                {k: answer[k] for k in p.signature.output_fields},
            )
            for p, given, answer in trace
            if id(p) in self.names
        ]
        # Anything else is scored as a failure, with the remedy.
        if isinstance(prediction, dspy.Prediction):
            self.recorded[_key(inputs)].append((prediction.toDict(), calls))
        return prediction

    def calls(self, example: dspy.Example, output: Mapping[str, Any]) -> list[Call]:
        """Return the calls of the latest run on an example's inputs that came to this output."""
        for answer, calls in reversed(self.recorded[_key(example.inputs().toDict())]):
            if all(output[k] == v for k, v in answer.items() if k in output):
                return [Call(str(example["id"]), *call) for call in calls]
        return []


def _key(inputs: dict[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True, default=str)


def targets_of(source: str, examples: Sequence[dspy.Example], context: FitContext, attempts: int) -> Targets:
    """Return the calls to learn from the examples; the context's program may show demonstrations to its model.

    Raises:
        UserError: there is no teacher, an example lacks a field, or nothing scored 1.
    """
    program, budget = context.program, context.budget
    if source == "gold" and _answers_directly(program, examples):
        return Targets(gold_calls(program, examples), solved=len(examples))
    lm, adapter = context.lm, dspy.settings.adapter
    if source == "teacher":
        if budget.teacher is None:
            raise UserError("sft targets 'teacher' without a teacher; add `teacher: openai/…` to the experiment file")
        lm, adapter = budget.teacher, budget.teacher_format
    facts = [
        source,
        attempts,
        lm.model,
        lm.kwargs.get("max_tokens"),
        lm.kwargs.get("temperature"),
        getattr(getattr(innermost(lm), "connection", None), "api_base", ""),
        type(adapter).__name__,
        getattr(adapter, "decode", ""),
        program.dump_state(),
        [e.toDict() for e in examples],
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
    # With a retriever in the program the targets depend on its index, and only the cell's own folder stands for that.
    own = budget.checkpoints or budget.workdir
    file = (own if budget.shared is None or dspy.settings.rm is not None else budget.shared) / f"{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    # Another worker, or another run, may be asking for the same targets.
    with FileLock(file.with_suffix(".lock")):
        if (targets := _read(file)) is None:
            with dspy.context(lm=lm, adapter=adapter):
                targets = _sample(source, examples, context, lm, attempts)
            write_json(file, asdict(targets))
    if not targets.calls:
        raise UserError(
            f"none of {len(examples)} train examples was answered with a score of 1 by {lm.model}, so that sft has "
            "nothing to learn from; use `targets: gold`, a better teacher, or more `attempts`"
        )
    return targets


def _answers_directly(program: dspy.Module, examples: Sequence[dspy.Example]) -> bool:
    """Return whether the program is one predictor whose inputs the data holds, so that nothing must be run."""
    predictors = program.predictors()
    return len(predictors) == 1 and all(n in e for e in examples for n in predictors[0].signature.input_fields)


def gold_calls(program: dspy.Module, examples: Sequence[dspy.Example]) -> list[Call]:
    """Return the call of the program's one predictor for each example, answered as far as the data goes."""
    name, predictor = program.named_predictors()[0]
    calls = []
    for e in examples:
        demo = labelled_fields(e, predictor)
        inputs = {k: v for k, v in demo.items() if k in predictor.signature.input_fields}
        outputs = {k: v for k, v in demo.items() if k in predictor.signature.output_fields}
        calls.append(Call(str(e["id"]), name, inputs, outputs))
    return calls


def labelled_fields(example: dspy.Example, predictor: dspy.Predict) -> dict[str, Any]:
    """Return the values of the predictor's fields in a train example, which may lack outputs that are texts.

    Raises:
        UserError: the example lacks all outputs, an input, or an output that an empty text cannot stand for.
    """
    values, signature = demo_of(example, predictor), predictor.signature
    optional = set() if values is None else {n for n, field in signature.output_fields.items() if is_text(field)}
    if missing := sorted(set(signature.fields) - set(example.keys()) - optional):
        raise UserError(
            f"train example {example['id']} lacks {', '.join(missing)}; add it to the data, or use `targets: self`"
        )
    return values or {}


def unlearned_fields(program: dspy.Module, calls: Sequence[Call]) -> list[str]:
    """Return the output fields of the predictors called that some of the calls have no answer for."""
    signatures = {name: p.signature for name, p in program.named_predictors()}
    return sorted({n for c in calls for n in signatures[c.predictor].output_fields if n not in c.outputs})


def _sample(source: str, examples: Sequence[dspy.Example], context: FitContext, lm: dspy.LM, attempts: int) -> Targets:
    """Answer the examples until each has a trace that scores 1, or its attempts are used up."""
    from crossover.models.price import api_price
    from crossover.models.prompt import engine_of

    local, meter = engine_of(lm) is not None, Meter(file=context.budget.answers, seed=context.seed)
    lm = meter.metered(lm)
    tracer, targets = Tracer(context.program), Targets([])
    left, traces = list(examples), dict[str, list[Call]]()
    for attempt in range(attempts):
        with dspy.context(lm=lm if attempt == 0 else lm.copy(temperature=WARM)):
            rows = list(
                score_examples(
                    tracer,
                    left,
                    context.metric,
                    threads=context.budget.threads,
                    price=(lambda usage: 0.0) if local else api_price,
                )
            )
        targets.spent += usage_of(rows) + Usage(metric_calls=len(rows))
        # An answer that could not be parsed has no trace.
        scores, outputs = {r.id: r.score for r in rows if r.output}, {r.id: r.output for r in rows}
        last = attempt == attempts - 1
        for e in left:
            score = scores.get(str(e["id"]))
            # Of a wrong last attempt, the steps that the data has answers for are learnt all the same.
            if score == 1.0 or (source == "gold" and last and score is not None):
                traces[str(e["id"])] = tracer.calls(e, outputs[str(e["id"])])
        left = [e for e in left if scores.get(str(e["id"])) != 1.0]
        targets.solved = len(examples) - len(left)
        context.budget.progress(f"targets: {targets.solved} of {len(examples)} examples after {attempt + 1} attempts")
        if not left:
            break
    wrong = {str(e["id"]) for e in left}
    for e in examples:
        calls = traces.get(str(e["id"]), [])
        targets.calls += _with_gold(tracer.program, e, calls, str(e["id"]) in wrong) if source == "gold" else calls
    targets.spent.seconds = meter.seconds
    targets.teacher_usd = targets.spent.usd if source == "teacher" else 0.0
    return targets


def _with_gold(program: dspy.Module, example: dspy.Example, calls: Sequence[Call], wrong: bool) -> list[Call]:
    """Replace answers of a trace by the data's; steps without such an answer are left out of a wrong trace.

    A step of which the data has only some fields, such as an answer without its reasoning, stays as it is in a right
    trace, and teaches these fields alone in a wrong one.
    """
    signatures = {name: p.signature for name, p in program.named_predictors()}
    learnt = []
    for c in calls:
        fields = signatures[c.predictor].output_fields
        known = {k: one_answer(example[k], field) for k, field in fields.items() if k in example}
        if len(known) == len(c.outputs) or (known and wrong):
            learnt.append(Call(c.example, c.predictor, c.inputs, known))
        elif not wrong:
            learnt.append(c)
    return learnt


def _read(file: Path) -> Targets | None:
    """Return the targets that an earlier fit built; their cost is charged again: this fit would have paid it."""
    if not file.exists():
        return None
    data = json.loads(file.read_text(encoding="utf-8"))
    return Targets([Call(**c) for c in data["calls"]], Usage(**data["spent"]), int(data["solved"]), data["teacher_usd"])
