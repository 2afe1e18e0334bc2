"""Tell of an arm that is hardly better than one answer to every question."""

from collections.abc import Iterable, Sequence

import dspy

from crossover.eval.analysis.stats import paired_difference
from crossover.programs.metrics import metric_names
from crossover.programs.score import Row
from crossover.programs.task import Task

FEWEST = 20
"""Scored rows below which nothing is told."""


def constant_warning(task: Task, test: Sequence[dspy.Example], rows: Sequence[Row]) -> str:
    """Return a warning when an arm gives mostly one answer and is not shown to be better than it.

    Such an arm has learnt what is frequent and nothing else, and can still top a table: where most texts hold no
    entity, silence is mostly right. Metrics of the user's own and judges are not asked: they may cost something.
    """
    scored = sum(r.score is not None for r in rows)
    if scored < FEWEST or task.metric_name not in metric_names():
        return ""
    output = task.outputs[0]
    answer = _majority(str(r.output.get(output, "")) for r in rows if r.score is not None)
    if 2 * sum(r.score is not None and str(r.output.get(output, "")) == answer for r in rows) <= scored:
        return ""
    scores = {r.id: r.score for r in rows if r.score is not None}
    always = dspy.Prediction(**{output: answer})
    examples = {str(e["id"]): e for e in test if str(e["id"]) in scores}
    constant = {i: float(task.metric(e, always)) for i, e in examples.items()}
    clusters = {i: str(e["cluster"]) for i, e in examples.items() if "cluster" in e}
    if paired_difference({i: scores[i] for i in constant}, constant, clusters=clusters or None).low > 0:
        return ""
    shown = answer if len(answer) <= 40 else f"{answer[:40]}…"
    mean = sum(constant.values()) / len(constant)
    return f"is not shown to be better than answering {shown!r} to everything, which scores {mean:.3f}"


def _majority(answers: Iterable[str]) -> str:
    """Return what more than half of the answers are, if anything is; else any one of them.

    Boyer and Moore's vote: a million different answers are not kept to be counted.
    """
    leader, lead = "", 0
    for answer in answers:
        if not lead:
            leader = answer
        lead += 1 if answer == leader else -1
    return leader
