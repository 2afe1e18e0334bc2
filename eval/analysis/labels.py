"""Score each gold label of an arm, with the frequency of the label among the training examples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dspy

from crossover.programs.fields import text_of
from crossover.programs.score import Row
from crossover.programs.task import Task


@dataclass(frozen=True)
class LabelScore:
    """Frequencies and score of one gold label."""

    train: float
    """Examples of the label in the train pool, the mean over seeds."""
    test: int
    """Examples of the label in test."""
    score: float
    """Mean over its scored test examples and over seeds."""


def gold_of(task: Task, example: dspy.Example) -> str:
    """Return the first gold answer of an example as text; one that is a list, with all its items."""

    def text(name: str) -> str:
        value = example[name]
        if name in task.lists:
            return ", ".join(map(text_of, value))
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        return "" if first is None else str(first)

    return " / ".join(map(text, task.outputs))


def are_labels(counts: Mapping[str, int]) -> bool:
    """Return whether gold answers, counted over the test examples, are labels rather than titles or sentences.

    Labels are several single lines that recur, each about twice or more.
    """
    return 2 <= len(counts) <= sum(counts.values()) / 2 and not any("\n" in label for label in counts)


def label_notes(
    task: Task, train: Sequence[dspy.Example], test: Sequence[dspy.Example], rows: Sequence[Row]
) -> dict[str, dict[str, Any]]:
    """Return the `LabelScore` of each label as a dict for the notes of a cell; empty unless answers are labels."""
    gold = {str(e["id"]): gold_of(task, e) for e in test}
    if not are_labels(counts := Counter(gold.values())):
        return {}
    pool, scores = Counter(gold_of(task, e) for e in train), dict[str, list[float]]()
    for row in rows:
        if row.score is not None and row.id in gold:
            scores.setdefault(gold[row.id], []).append(row.score)
    return {y: asdict(LabelScore(pool[y], counts[y], sum(s) / len(s))) for y, s in sorted(scores.items())}


def mean_labels(notes: Sequence[Mapping[str, Any]]) -> dict[str, LabelScore]:
    """Return the mean of each label over the seeds that scored it, from the notes of their results."""
    gathered: dict[str, list[LabelScore]] = {}
    for note in notes:
        for label, fields in note.get("label_scores", {}).items():
            gathered.setdefault(label, []).append(LabelScore(**fields))
    return {
        y: LabelScore(sum(x.train for x in same) / len(same), same[0].test, sum(x.score for x in same) / len(same))
        for y, same in gathered.items()
    }


def rare_and_frequent(labels: Mapping[str, LabelScore]) -> tuple[float, float] | None:
    """Return the mean score over the rarer half of the labels by train examples, and over the other half.

    Every label has the same weight. None unless one label is at least twice as frequent as another.
    """
    ranked = sorted(labels.items(), key=lambda item: (item[1].train, item[0]))
    if len(ranked) < 2 or ranked[-1][1].train < 2 * max(1.0, ranked[0][1].train):
        return None
    half = len(ranked) // 2
    rare, frequent = ([x.score for _, x in part] for part in (ranked[:half], ranked[half:]))
    return sum(rare) / len(rare), sum(frequent) / len(frequent)
