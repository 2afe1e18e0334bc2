"""Load and check what an experiment consists of, and read its finished results; no model is loaded for either."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from crossover.eval.experiment.spec import Cell, Experiment, plan
from crossover.eval.run.cell_keys import CellKeys
from crossover.eval.run.dry_fit import check_fits
from crossover.eval.run.judging import judged
from crossover.eval.run.methods import check_methods
from crossover.eval.run.passages import Indexes
from crossover.eval.store.cells import load_standing
from crossover.eval.store.result import Finished
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel, load_model, source_of
from crossover.models.price import state_prices
from crossover.models.source import source_fault
from crossover.models.spec import ModelSpec
from crossover.programs.data import load_and_check
from crossover.programs.records import Problem
from crossover.programs.retrieval.base import silent
from crossover.programs.spec import TaskSpec
from crossover.programs.task import Task


def prepare(
    experiment: Experiment,
    *,
    store: Path,
    note: Callable[[str], None] = silent,
    load: Callable[[ModelSpec], LoadedModel] = load_model,
) -> CellKeys:
    """Load and check the tasks of an experiment, and return the keys of its cells.

    Warnings and notes go to `note`; `load` loads the models of judges.

    Raises:
        UserError: tasks or weights have errors.
    """
    state_prices(experiment.prices.models)
    tasks, problems = load_tasks(experiment.tasks, load)
    others, found = load_tasks(experiment.retention, load)
    problems += found
    for p in problems:
        if p.level != "error":
            note(str(p))
    problems += check_weights(experiment)
    if any(p.level == "error" for p in problems):
        # A finished run is read without keys, and where its methods could not be fitted.
        problems += [*check_keys(experiment), *check_methods(experiment)]
    raise_errors(problems)
    if any(spec.starts_vllm for spec in _models(experiment)):
        from crossover.models.vllm_server import make_room

        make_room(_ranks(experiment))
    for spec in _models(experiment):
        if spec.runs_here:
            source_of(spec, note)  # what must be fetched or converted is, before anything is spent
    return CellKeys(experiment, tasks, Indexes(store, note), others)


def _ranks(experiment: Experiment) -> list[int]:
    """Return the ranks that the adapters of an experiment may have."""
    from crossover.finetune.training.options import SEARCHED_RANKS, TrainingOptions

    steps = [step.options for method in experiment.methods for step in method.steps if step.trains]
    searched = SEARCHED_RANKS if any(options.get("search") for options in steps) else ()
    return [*searched, *(int(options.get("rank", TrainingOptions.rank)) for options in steps)]


def load_tasks(
    specs: tuple[TaskSpec, ...], load: Callable[[ModelSpec], LoadedModel] = load_model
) -> tuple[dict[str, Task], list[Problem]]:
    """Load and check every task, and return the sound ones with all problems; `load` loads the models of judges."""
    tasks, problems = {}, []
    for spec in specs:
        task, found = load_and_check(spec)
        problems += found
        if task is not None and not (spec.judge and any(p.level == "error" for p in _weights_fault(spec.judge.model))):
            tasks[spec.name] = judged(task, spec, load)
    return tasks, problems


def raise_errors(problems: Iterable[Problem]) -> None:
    """Raise the errors among the problems, all at once.

    Raises:
        UserError: there is one.
    """
    if errors := [str(p) for p in problems if p.level == "error"]:
        raise UserError("\n".join(errors))


def check_weights(experiment: Experiment) -> list[Problem]:
    """Return what keeps the weights of models that run here from being loaded; none is loaded."""
    return [p for spec in _models(experiment) for p in _weights_fault(spec)]


def _weights_fault(spec: ModelSpec) -> list[Problem]:
    fault = source_fault(spec.name) if spec.runs_here else None
    return [Problem(fault.level, spec.name, fault.what, fault.remedy)] if fault else []


def check_keys(experiment: Experiment) -> list[Problem]:
    """Return the missing keys and servers that would keep models from being called; none is called."""
    problems = _check_vllm(experiment)
    for spec in _models(experiment):
        if spec.runs_here or spec.api_base or spec.api_key:
            continue
        key = f"{spec.name.partition('/')[0].upper()}_API_KEY"
        if spec.name.startswith(("openai/", "anthropic/", "gemini/")) and not os.environ.get(key):
            problems.append(Problem("error", spec.name, f"{key} is not set", f"export {key}=…"))
    # A model that also judges stands there twice, with other settings.
    return list(dict.fromkeys(problems))


def _check_vllm(experiment: Experiment) -> list[Problem]:
    """Return what keeps vLLM servers from being started here."""
    started = list(dict.fromkeys(spec.name for spec in _models(experiment) if spec.starts_vllm))
    if not started:
        return []
    from crossover.models.vllm_server import NOT_INSTALLED, REMEDY, is_installed

    if not is_installed():
        return [Problem("error", name, NOT_INSTALLED, REMEDY) for name in started]
    what = f"each needs a vLLM server, and half of the GPU, of its own: {', '.join(started)}"
    remedy = "give the `api_base` of a running server for all but one"
    return [Problem("error", "models", what, remedy)] if len(started) > 1 else []


def _models(experiment: Experiment) -> list[ModelSpec]:
    """Return every model of an experiment: those that are adapted, the teacher and the judges."""
    teacher = [experiment.teacher] if experiment.teacher else []
    judges = [t.judge.model for t in (*experiment.tasks, *experiment.retention) if t.judge]
    # Equal ones may have different keys.
    return list({(m, m.api_key): m for m in [*experiment.models, *teacher, *judges]}.values())


def finished(experiment: Experiment, *, store: Path) -> Finished:
    """Return the tasks of an experiment and its finished results.

    Raises:
        UserError: the tasks have errors, or no cell is finished.
    """
    keyed = prepare(experiment, store=store)
    keys = [keyed.of(c) for c in plan(experiment)]
    results = tuple(load_standing(store, keys, racing=experiment.racing, planned=keys).values())
    if not results:
        others = sum(1 for _ in store.glob("cells/*/result.json"))
        remedy = "give the same FILE, --limit, --set and --seeds as to `run`" if others else "`crossover run` first"
        what = f"{store}: none of the {len(keys)} cells of {experiment.name!r} is finished"
        raise UserError(f"{what}{f' ({others} of other settings are)' if others else ''}; {remedy}")
    return Finished(keyed.tasks, results, len(keys))


def check_cells(experiment: Experiment, tasks: Mapping[str, Task], cells: Sequence[Cell]) -> list[Problem]:
    """Return what would keep these cells from being measured, weights apart; nothing is called or paid.

    The dry fits, which take seconds, wait until keys and options are in order.
    """
    problems = [*check_keys(experiment), *check_methods(experiment)]
    return problems or check_fits(cells, tasks)
