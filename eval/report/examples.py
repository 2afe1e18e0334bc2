"""What the arms answered: scores by label, and examples on which the arms disagree."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from crossover.eval.analysis.compare import Arm
from crossover.eval.analysis.labels import gold_of, recur
from crossover.eval.experiment.splits import sample
from crossover.eval.report.evidence import Evidence
from crossover.eval.report.text import field_text
from crossover.programs.task import Task

MOST_DISAGREEMENTS = 12
"""Examples of one task that a report shows."""


@dataclass(frozen=True)
class LabelLine:
    """How the arms did on one label."""

    label: str
    train: int
    """Training examples of this label, of the whole pool."""
    test: int
    scores: tuple[float | None, ...]
    """Mean score of each arm; None where it scored none of them."""


def label_lines(evidence: Evidence, task: str, arms: Sequence[Arm]) -> list[LabelLine]:
    """Return the scores by gold label, the most frequent first; empty when answers are not labels that recur."""
    source, limit = evidence.finished.tasks[task], evidence.experiment.limit
    test = {str(e["id"]): gold_of(source, e) for e in sample(source.test, limit)}
    counts = Counter(test.values())
    if not recur(counts):
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


@dataclass(frozen=True)
class Answer:
    """What one arm answered to one example."""

    arm: str
    text: str
    """The output, or the failure."""
    score: float | None


@dataclass(frozen=True)
class Disagreement:
    """One test example on which the arms differ."""

    id: str
    inputs: tuple[tuple[str, str], ...]
    gold: str
    answers: tuple[Answer, ...]


def disagreements(evidence: Evidence, task: str, arms: Sequence[Arm]) -> tuple[list[Disagreement], int]:
    """Return a sample of the examples whose scores differ by half or more between arms, and how many there are.

    The order is that of a hash of the id: neither the first rows of the file nor the most telling ones.
    """
    source, limit = evidence.finished.tasks[task], evidence.experiment.limit
    examples = {str(e["id"]): e for e in sample(source.test, limit)}
    split = [i for i in examples if _spread(i, arms) >= 0.5]
    chosen = sorted(split, key=lambda i: hashlib.sha256(i.encode()).hexdigest())[:MOST_DISAGREEMENTS]
    wanted = set(chosen)
    # The first seed stands for an arm: an answer is one answer, not a mean.
    rows = {a.name: {r.id: r for r in evidence.results(a)[0].rows if r.id in wanted} for a in arms}
    found = []
    for i in chosen:
        e = examples[i]
        inputs = tuple((k, field_text(v)) for k, v in e.inputs().items() if k != "passages")
        answers = [(a, rows[a.name][i]) for a in arms if i in rows[a.name]]
        found.append(
            Disagreement(
                i,
                inputs,
                gold_of(source, e),
                tuple(Answer(a.name, r.failure or _output(source, r.output), r.score) for a, r in answers),
            )
        )
    return found, len(split)


def _spread(i: str, arms: Sequence[Arm]) -> float:
    scores = [a.scores[i] for a in arms if i in a.scores]
    return max(scores) - min(scores) if scores else 0.0


def _output(task: Task, output: dict[str, object]) -> str:
    """Return the answer fields of an output, or all of it when they are missing."""
    values = [output[name] for name in task.outputs if name in output]
    return " / ".join(map(field_text, values)) if values else json.dumps(output, ensure_ascii=False, default=str)
