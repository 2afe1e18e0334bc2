"""Write the experiment file of a guessed task, short and commented."""

from collections.abc import Mapping
from typing import Any

import yaml

from crossover.eval.experiment.guess import Guess
from crossover.models.spec import ModelSpec

TEMPLATE = """\
# {command}
#   crossover validate {file}    every fault of this file and its data
#   crossover run {file}         measure, compare, decide; again to go on where it stopped
version: 1
name: {name}

tasks:
  - name: {name}
{task}

models:
  - {model}

methods:                                 # crossover ls methods
{methods}

seeds: [0]                               # several tell the spread between them
# train_sizes: [64, 256]                 # how much data: nested samples of train
# limits: {{usd: 5, minutes: 30}}          # where a run stops; run again to go on
needs: {{volume_per_month: 100000}}        # also min_score, max_p95_ms, max_usd_per_month
"""
RUNS_HERE = ("zero_shot", "few_shot: {demos: 8}", "retrieved_demos: {demos: 8}", "sft: {adapter: lora, epochs: 3}")
"""Methods for a model that can be trained; an API takes all but the last."""


def experiment_text(guess: Guess, *, name: str, data: Mapping[str, str], file: str, command: str) -> str:
    """Return the experiment file of a guess.

    Args:
        guess: What the data was taken for.
        name: Name of the task and of the experiment.
        data: The source: `{"file": path}`, relative to the experiment file, or `{"hf": repository}`.
        file: The experiment file as commands name it.
        command: The command that writes it.
    """
    spec = guess.spec(name, data)
    lines: dict[str, tuple[Any, str]] = {
        "program": (guess.program, guess.why),
        "data": (data.get("file") or f"hf:{data['hf']}", "split by a hash of the input"),
        "split": (dict(guess.split), "train is the rest; a verdict needs 50 test rows"),
        "input": (list(spec.input), "columns by their own names"),
        "output": (list(spec.output), ""),
        "fields": (dict(spec.fields), "roles of other columns"),
        "metric": (spec.metric, "or ./mine.py:my_metric"),
        "corpus": (spec.corpus, "passages to retrieve from"),
        "cluster": (spec.cluster, "rows that share it stay in one split"),
    }
    task = [_line(key, value, comment) for key, (value, comment) in lines.items() if value]
    model = {"name": guess.model, "max_tokens": guess.max_tokens}
    return TEMPLATE.format(
        command=command,
        file=file,
        name=flow(name),
        task="\n".join(task),
        model=flow(model),
        methods="\n".join(f"  - {m}" for m in methods_for(guess.model)),
    )


def methods_for(model: str) -> tuple[str, ...]:
    """Return the methods that an experiment on the model compares, as the file writes them."""
    return RUNS_HERE if ModelSpec(model).runs_here else RUNS_HERE[:-1]


def _line(key: str, value: Any, comment: str) -> str:
    text = f"    {key}: {flow(value)}"
    # A column's name may hold line ends and control characters, which would end the comment or the file.
    comment = "".join(c for c in " ".join(comment.split()) if c.isprintable())
    return f"{text:<40} # {comment}" if comment else text


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)[1:-2]
