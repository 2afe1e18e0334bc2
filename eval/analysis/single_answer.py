"""Warn of an arm that is not shown to be better than one answer to every question."""

import json
from collections.abc import Iterable, Iterator, Sequence

import dspy

from crossover.eval.analysis.stats import paired_difference
from crossover.programs.metrics import metric_names
from crossover.programs.score import Row
from crossover.programs.task import Task

FEWEST = 20
"""With fewer scored rows no warning is given."""


def single_answer_warning(task: Task, test: Sequence[dspy.Example], rows: Sequence[Row]) -> str:
    """Return a warning if most answers of an arm are one and the same, and it is not shown to be better than that one.

    Such an arm has learnt the most frequent answer and nothing else, and can still top a table: where most texts hold
    no entity, an empty answer is mostly right. Custom metrics and judges are not called, because they may cost money.
    """
    scores = {r.id: r.score for r in rows if r.score is not None}
    if len(scores) < FEWEST or task.metric_name not in metric_names():
        return ""

    def answers() -> Iterator[str]:
        fields = ([r.output.get(name) for name in task.outputs] for r in rows if r.score is not None and not r.unparsed)
        return (json.dumps(values, ensure_ascii=False, default=str) for values in fields)

    answer = _majority(answers())
    if 2 * sum(a == answer for a in answers()) <= len(scores):
        return ""
    values = json.loads(answer) if answer else [""] * len(task.outputs)
    always = dspy.Prediction(**dict(zip(task.outputs, values, strict=True)))
    examples = {str(e["id"]): e for e in test if str(e["id"]) in scores}
    constant = {i: float(task.metric(e, always)) for i, e in examples.items()}
    clusters = {i: str(e["cluster"]) for i, e in examples.items() if "cluster" in e}
    if paired_difference({i: scores[i] for i in constant}, constant, clusters=clusters or None).low > 0:
        return ""
    text = " / ".join(map(str, values))
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    mean = sum(constant.values()) / len(constant)
    return f"is not shown to be better than answering {shown!r} to everything, which scores {mean:.3f}"


def _majority(answers: Iterable[str]) -> str:
    """Return the answer that more than half of the answers are, or an arbitrary one if there is none.

    The majority vote of Boyer and Moore, which needs no count of every distinct answer.
    """
    leader, lead = "", 0
    for answer in answers:
        if not lead:
            leader = answer
        lead += 1 if answer == leader else -1
    return leader
