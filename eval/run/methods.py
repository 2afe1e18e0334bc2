"""Make the method that an experiment file names."""

import shlex
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crossover.eval.experiment.catalog import METHOD_FOLDERS
from crossover.eval.experiment.spec import Experiment, SearchBudget
from crossover.eval.run.chain import Chain
from crossover.models.errors import UserError
from crossover.programs.records import Problem
from crossover.programs.task import Method

BUDGET_OPTIONS = tuple(f.name for f in fields(SearchBudget))


def method_of(name: str, options: Any) -> Method:
    """Return the method of that file name, with its options; a chain of the methods that its options list."""
    if name == "chain":
        return Chain(tuple((s["name"], method_of(s["name"], s["options"])) for s in options["steps"]))
    options = {k: v for k, v in options.items() if k not in BUDGET_OPTIONS}
    for folder in METHOD_FOLDERS:
        if find_spec(f"crossover.{folder}.{name}"):
            cls = vars(import_module(f"crossover.{folder}.{name}"))["".join(w.capitalize() for w in name.split("_"))]
            method: Method = cls(**options)
            return method
    raise UserError(f"method {name!r} is not a file of optimizers/ or finetune/; see `crossover ls methods`")


def launch_lines(experiment: Experiment) -> list[str]:
    """Return, for each accelerate configuration, the command that starts the processes of a training."""
    steps = [step for method in experiment.methods for step in method.steps]
    files = dict.fromkeys(str(file) for step in steps if (file := step.options.get("accelerate_file")))
    if not files:
        return []
    from crossover.finetune.training.launch import command_of

    return [f"{f} starts each training by: {shlex.join(command_of(Path(f), Path('FOLDER')))}" for f in files]


def check_methods(experiment: Experiment) -> list[Problem]:
    """Return the options that the methods of an experiment refuse, and those that need a teacher; fit nothing."""
    problems = []
    for spec in experiment.methods:
        try:
            method_of(spec.name, spec.options)
        except UserError as e:
            what, _, remedy = str(e).rpartition("; ")
            problems.append(Problem("error", spec.label, what, remedy))
        if experiment.teacher is None and any(step.options.get("targets") == "teacher" for step in spec.steps):
            what, remedy = "`targets: teacher` without a teacher", "add `teacher: openai/…` to the experiment file"
            problems.append(Problem("error", spec.label, what, remedy))
    return problems
