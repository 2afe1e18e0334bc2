"""A task as the experiment file names it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crossover.models.spec import ModelSpec

CRITERIA = {
    "accuracy": "Is what the answer says right, judged by the reference? A contradiction of the reference is a no.",
    "completeness": "Does the answer say everything that the reference says and the question asks for?",
}
"""Built-in criteria of a judge, with the question that each asks."""


@dataclass(frozen=True)
class JudgeSpec:
    """A model that grades answers, in place of a metric that compares texts."""

    model: ModelSpec
    criteria: tuple[tuple[str, str], ...]
    """Name and question; an empty question for a built-in criterion."""


def criteria_of(spec: JudgeSpec) -> dict[str, str]:
    """Return each criterion with the question it asks."""
    return {name: question or CRITERIA[name] for name, question in spec.criteria}


@dataclass(frozen=True)
class TaskSpec:
    """The data, program and metric of one task."""

    name: str
    program: str = ""
    """Empty for a built-in task; else `classify`, `rag`, … or `./file.py:Class`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Split to file path (absolute), or to a mapping for Hugging Face data; `file` to one file of all rows."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Column to `input`, `output`, `gold`, `id` or `ignored`."""
    output: Mapping[str, str] = field(default_factory=dict)
    """Output columns, by their own names, to the kind of their values; empty for a kind told from the values."""
    metric: str = ""
    judge: JudgeSpec | None = None
    """Set by `metric: {judge: …}`."""
    corpus: str = ""
    cluster: str = ""
    instructions: str = ""
    """Instructions to the model; empty for the program's own."""
    input: Sequence[str] = ()
    """Input columns, by their own names."""
    split: Mapping[str, float] = field(default_factory=dict)
    """Shares of val and test where all rows come from one file; empty for 0.1 and 0.2."""
