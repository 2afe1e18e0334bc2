"""Show answers of the arms: scores by gold label, and a sample of the examples on which the arms disagree."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.labels import are_labels, gold_of
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment.splits import sample
from crossover.eval.report.data import ReportData
from crossover.eval.report.text import field_text
from crossover.programs.score import Row
from crossover.programs.task import Task

MOST_DISAGREEMENTS = 24
"""Examples of disagreement that a report shows, shared among its tasks."""
FEWEST = 6
"""Examples of disagreement shown of each task, however many there are."""
MOST_COLUMNS = 6
"""Arms shown in the table of labels and in the grid of examples."""


def shown_arms(data: ReportData, verdict: Verdict) -> list[Arm]:
    """Return the chosen or best arm, the best of the other kind, the best of each method and the next best."""
    shown = data.reference_arm(verdict)
    scored = [shown] + [a for a in data.arms(verdict.task) if a.score.n and a is not shown]
    rivals = [a for a in scored if a.kind != shown.kind][:1]
    best = [next(a for a in scored if a.method == m) for m in dict.fromkeys(a.method for a in scored)]
    names = dict.fromkeys(a.name for a in [shown, *rivals, *best, *scored])
    return [next(a for a in scored if a.name == name) for name in names][:MOST_COLUMNS]


class LabelLine(NamedTuple):
    """Scores of the arms on one gold label."""

    label: str
    train: int
    """Examples of this label in the whole train pool."""
    test: int
    scores: tuple[float | None, ...]
    """Mean score of each arm; None for an arm that scored no example of the label."""


def label_lines(data: ReportData, task: str, arms: Sequence[Arm]) -> list[LabelLine]:
    """Return the scores by gold label, the most frequent first; empty unless gold answers are labels."""
    source, limit = data.finished.tasks[task], data.experiment.limit
    test = {str(e["id"]): gold_of(source, e) for e in sample(source.test, limit)}
    counts = Counter(test.values())
    if not are_labels(counts):
        return []
    train = Counter(gold_of(source, e) for e in source.train)
    ids: dict[str, list[str]] = {}
    for i, label in test.items():
        ids.setdefault(label, []).append(i)

    def mean(arm: Arm, label: str) -> float | None:
        scores = [arm.scores[i] for i in ids[label] if i in arm.scores]
        return sum(scores) / len(scores) if scores else None

    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    return [LabelLine(y, train[y], counts[y], tuple(mean(a, y) for a in arms)) for y in ranked]


class Answer(NamedTuple):
    """Answer of one arm to one example."""

    arm: str
    cell: str
    text: str
    """The output, the raw text of an unparsed answer, or the reason of a failure."""
    score: float | None
    raw: str
    """The text of the model's last answer as it came; empty where it was not recorded."""


class Disagreement(NamedTuple):
    """One test example on which the arms disagree."""

    id: str
    inputs: tuple[tuple[str, str], ...]
    """Name and text of each input field, passages apart."""
    gold: str
    answers: Mapping[str, Answer]
    """Arm to answer; an arm that a race dropped may have none."""


def disagreements(data: ReportData, task: str, arms: Sequence[Arm]) -> tuple[list[Disagreement], int]:
    """Return a sample of the examples whose scores differ by half or more between arms, and the count of them all.

    A hash of the id draws the sample, so that it favours neither the first rows of the file nor striking examples.
    """
    source, limit = data.finished.tasks[task], data.experiment.limit
    examples = {str(e["id"]): e for e in sample(source.test, limit)}
    split = [i for i in examples if _spread(i, arms) >= 0.5]
    most = max(FEWEST, MOST_DISAGREEMENTS // len(data.comparison.verdicts))
    chosen = sorted(split, key=lambda i: hashlib.sha256(i.encode()).hexdigest())[:most]
    answers: dict[str, dict[str, Answer]] = {i: {} for i in chosen}
    for arm in arms:
        # Answers have no mean over seeds, so the first seed stands for the arm.
        result = data.results(arm)[0]
        for row in (r for r in result.rows if r.id in answers):
            answers[row.id][arm.name] = Answer(arm.name, result.key, _answer(source, row), row.score, row.raw)
    found = []
    for i in chosen:
        fields = {k: v for k, v in examples[i].inputs().items() if k != "passages"}
        inputs = tuple((source.columns.get(k, k), field_text(v)) for k, v in fields.items())
        found.append(Disagreement(i, inputs, gold_of(source, examples[i]), answers[i]))
    return found, len(split)


def _spread(i: str, arms: Sequence[Arm]) -> float:
    scores = [a.scores[i] for a in arms if i in a.scores]
    return max(scores) - min(scores) if scores else 0.0


def _answer(task: Task, row: Row) -> str:
    """Return the answer fields of a row as text, or its whole output when it has none of them, or what came instead."""
    if row.failure or row.unparsed:
        return row.failure or row.raw
    values = [row.output[name] for name in task.outputs if name in row.output]
    return " / ".join(map(field_text, values)) if values else json.dumps(row.output, ensure_ascii=False, default=str)
