"""Read the metric of a task: a name, or a model that judges by named criteria."""

from dataclasses import replace
from typing import Any

import yaml

from crossover.eval.experiment.document import Document
from crossover.eval.experiment.read_model import read_model
from crossover.programs.spec import JudgeSpec

JUDGE_TOKENS = 512
"""Room for a sentence on every criterion, unless the file says otherwise."""
BUILT_IN = ("accuracy", "completeness")


def read_judge(doc: Document, node: yaml.Node) -> JudgeSpec | None:
    """Return the judge of `metric: {judge: {model: …, criteria: […]}}`; None with a fault when it is none.

    Without a `model` the file's teacher judges.
    """
    outer = doc.mapping(node, "metric", ("judge",))
    if "judge" not in outer:
        doc.fault(node, "`metric` is a mapping without `judge`", "write a name, or {judge: {model: …}}")
        return None
    entries = doc.mapping(outer["judge"], "metric.judge", ("model", "criteria"))
    named = entries.get("model") or next((v for k, v in doc.root.value if k.value == "teacher"), None)
    if named is None:
        what = "`metric.judge` has no `model`, and the file no `teacher`"
        doc.fault(outer["judge"], what, "add one, such as `model: openai/NAME`")
        return None
    before = len(doc.problems)
    model = read_model(doc, named, "metric.judge.model")
    criteria: tuple[tuple[str, str], ...] = tuple((name, "") for name in BUILT_IN)
    if "criteria" in entries:
        read = (_criterion(doc, n) for n in doc.items(entries["criteria"], "metric.judge.criteria"))
        criteria = tuple(c for c in read if c is not None)
    if len({name for name, _ in criteria}) < len(criteria) or not criteria:
        doc.fault(entries.get("criteria"), "`metric.judge.criteria` names one twice, or none", "name each once")
    if model is None or len(doc.problems) > before:
        return None
    given: Any = doc.value(named)
    roomy = isinstance(given, dict) and "max_tokens" in given
    return JudgeSpec(model if roomy else replace(model, max_tokens=JUDGE_TOKENS), criteria)


def _criterion(doc: Document, node: yaml.Node) -> tuple[str, str] | None:
    """Return a built-in criterion, or a name of the user's with what it asks."""
    value = doc.value(node)
    name, asks = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (value, "")
    if not isinstance(name, str) or not isinstance(asks, str) or not name.isidentifier():
        doc.fault(node, f"criterion {value!r} is not a name or `name: what it asks`", "write `- tone: Is it polite?`")
        return None
    if not asks and name not in BUILT_IN:
        doc.unknown(node, "criterion", name, [*BUILT_IN, "NAME: what it asks"])
        return None
    return name, asks
