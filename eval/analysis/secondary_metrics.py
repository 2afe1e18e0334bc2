"""Compute the metrics that a task is not scored by: macro-F1 and micro-F1 over all answers, knowledge-F1."""

from collections.abc import Mapping, Sequence

import dspy

from crossover.programs.entities import micro_f1
from crossover.programs.metrics import attribute_f1, compared, exact_match, token_f1
from crossover.programs.score import Row
from crossover.programs.task import Task
from crossover.programs.text_metrics import macro_f1

LABEL_METRICS = ("accuracy", "label_accuracy")


def secondary_metrics(task: Task, test: Sequence[dspy.Example], rows: Sequence[Row]) -> dict[str, float]:
    """Return macro-F1 for labels, micro-F1 for entities, two metrics of whole records, and knowledge-F1 over passages.

    Failed rows count in none of them. Knowledge-F1 is the F1 of the words that answer and passages share:
    how much of the passages is in the answer, whether right or wrong.
    """
    output, by_id = task.outputs[0], {r.id: r for r in rows if not r.failure}
    test = [e for e in test if str(e["id"]) in by_id]
    answers = [str(by_id[str(e["id"])].output.get(output, "")).strip() for e in test]
    found = {}
    if test and task.metric_name in LABEL_METRICS and all(isinstance(e[output], str) for e in test):
        found["macro_f1"] = macro_f1(answers, [e[output].strip() for e in test])
    if test and task.metric_name == "entity_f1":
        found["micro_f1"] = micro_f1(answers, [str(e[output]) for e in test])
    found |= _record_metrics(task.outputs, test, by_id)
    shown = [(a, " ".join(e["passages"])) for a, e in zip(answers, test, strict=True) if a and e.get("passages")]
    if shown:
        found["knowledge_f1"] = sum(token_f1(a, passages) for a, passages in shown) / len(shown)
    return found


def near_miss_warning(task: Task, test: Sequence[dspy.Example], rows: Sequence[Row]) -> str:
    """Return a warning if wrong labels differ from the gold ones in case and punctuation alone."""
    if task.metric_name not in LABEL_METRICS:
        return ""
    output, gold = task.outputs[0], {str(e["id"]): e for e in test}
    wrong = [r for r in rows if r.score == 0.0]
    near = sum(compared(exact_match, r.output.get(output), gold[r.id][output]) == 1.0 for r in wrong)
    what = f"{near} of {len(wrong)} wrong answers differ from the gold answer in case and punctuation alone"
    return f"{what}; `metric: exact_match` takes them for right" if near else ""


def _record_metrics(outputs: Sequence[str], test: Sequence[dspy.Example], by_id: Mapping[str, Row]) -> dict[str, float]:
    """Return the share of records that are right in every field, and the F1 over the attributes of all records.

    Empty unless the rows have a score for every field. Failed rows are left out.
    """
    rows = [(e, by_id[str(e["id"])]) for e in test if not by_id[str(e["id"])].failure]
    if not any(r.fields.keys() >= set(outputs) for _, r in rows):
        return {}
    values = [(r.output.get(n), e[n], r.fields.get(n, 0.0)) for e, r in rows for n in outputs]
    whole = [all(r.fields.get(n) == 1.0 for n in outputs) for _, r in rows]
    return {"exact_record": sum(whole) / len(whole), "attribute_f1": attribute_f1(values)}


def mean_secondary_metrics(notes: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Return the mean of each metric over the seeds, from the notes of their results."""
    gathered: dict[str, list[float]] = {}
    for note in notes:
        metrics = note.get("secondary")
        for name, value in metrics.items() if isinstance(metrics, dict) else ():
            gathered.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in gathered.items()}
