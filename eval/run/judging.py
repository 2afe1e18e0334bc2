"""Make a judge the metric of a task, and account for its calls."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from crossover.models.load import LoadedModel, model_sha256
from crossover.models.spec import ModelSpec
from crossover.models.usage import Usage
from crossover.programs.judge import Judge, judge_sha256
from crossover.programs.score import Row
from crossover.programs.spec import JudgeSpec, TaskSpec, criteria_of
from crossover.programs.task import Task


def judged(task: Task, spec: TaskSpec, load: Callable[[ModelSpec], LoadedModel]) -> Task:
    """Return the task with its judge, if any, as the metric; the judge's model is loaded on first use."""
    if spec.judge is None:
        return task
    judge, criteria = spec.judge, criteria_of(spec.judge)

    def model() -> tuple[Any, Any, Any]:
        loaded = load(judge.model)
        return loaded.lm, loaded.prompt_format, loaded.price

    identity = [judge_sha256(criteria), model_sha256(judge.model), judge.model.max_tokens, judge.model.temperature]
    digest = hashlib.sha256(json.dumps([*identity, judge.model.api_base]).encode()).hexdigest()
    metric = Judge(criteria, task.inputs, task.outputs[0], model, task.outputs[0] in task.lists)
    return replace(task, metric=metric, metric_name=f"judge {judge.model.name}@{digest[:12]}")


def judge_notes(spec: JudgeSpec, rows: Iterable[Row]) -> dict[str, Any]:
    """Return the notes of a cell on its judge: model, criteria, hash of the prompt, and usage on the test set."""
    spent = judge_spent(rows)
    return {
        "model": spec.model.name,
        "prompt_sha256": judge_sha256(criteria_of(spec)),
        "criteria": criteria_of(spec),
        "calls": spent.calls,
        "usd": spent.usd,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
    }


def judge_spent(rows: Iterable[Row]) -> Usage:
    """Return the usage of grading these rows; grades that could not be parsed have no recorded price."""
    facts = [r.output["judgement"] for r in rows if "judgement" in r.output]
    usd = [f["usd"] for f in facts]
    return Usage(
        calls=len(facts),
        seconds=sum(f["seconds"] for f in facts),
        prompt_tokens=sum(f["prompt_tokens"] for f in facts),
        completion_tokens=sum(f["completion_tokens"] for f in facts),
        usd=None if None in usd else sum(usd),
    )


def without_judge(seconds: float, rows: Sequence[Row]) -> float:
    """Return the seconds of the accuracy pass without the judge's share: program and judge use the same threads."""
    graded, answered = judge_spent(rows).seconds, sum(r.seconds for r in rows)
    return seconds * answered / (answered + graded) if graded else seconds
