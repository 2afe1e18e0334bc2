"""A fitted arm as a folder that runs elsewhere: how to build its program, what was adapted, its weights; no secret."""

import inspect
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import dspy

from crossover.eval.experiment.catalog import ROOT
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.store.cells import cell_folder, check_fitted, write_json
from crossover.eval.store.result import Result
from crossover.models.errors import UserError
from crossover.models.load import EMBEDDED, load_model, tuned_lm
from crossover.models.spec import ModelSpec
from crossover.models.weights import folder_sha256
from crossover.optimizers.common.context import fits_context
from crossover.optimizers.common.nearest import BM25, NearestDemos
from crossover.optimizers.ensemble import Vote
from crossover.programs.load import load_object
from crossover.programs.task import Task

SUBPACKAGES = ("models", "programs", "optimizers", "eval")
RECIPE, PROGRAM, WEIGHTS, BASE = "recipe.json", "program.json", "weights", "base"


class NotPortableError(Exception):
    """The arm needs something that cannot travel; the message says what."""


def pack(store: Path, result: Result, task: Task, folder: Path) -> None:
    """Write the arm of a finished cell to an empty folder.

    Raises:
        NotPortableError: the arm cannot travel.
    """
    cell, kept = result.cell, cell_folder(store, result.key)
    _check_method(cell.method)
    try:
        check_fitted(kept)
    except UserError as e:
        raise NotPortableError(str(e)) from e
    if cell.knowledge.test in ("retrieved", "noisy") and "multihop" in _module(task):
        raise NotPortableError("its program searches while it answers, and the index does not travel")
    program = _build_facts(task, folder)
    shutil.copy(kept / PROGRAM, folder / PROGRAM)
    lm = str(json.loads((kept / "fit.json").read_text(encoding="utf-8"))["lm"])
    weights = [f for f in sorted((kept / "fit").rglob("best")) if f.is_dir() and folder_sha256(f)[:12] in lm]
    if len(weights) > 1:
        raise NotPortableError("its weights were trained in several steps")
    for source in weights:
        shutil.copytree(source, folder / WEIGHTS)
    if cell.model.name == "embedded":
        shutil.copytree(EMBEDDED, folder / BASE)
    inputs = [*task.inputs, *(["passages"] if task.corpus else [])]
    write_json(
        folder / RECIPE,
        {
            "cell": result.key,
            "task": cell.task,
            "method": cell.method.label,
            "seed": cell.seed,
            "lm": lm,
            "model": asdict(cell.model),
            "program": program,
            "inputs": inputs,
            "outputs": list(task.outputs),
        },
    )


def copy_package(folder: Path) -> Path:
    """Copy the part of this package that `unpack` needs, without weights, and return the copy."""
    package = folder / ROOT.name
    package.mkdir()
    shutil.copy(ROOT / "__init__.py", package)
    for name in SUBPACKAGES:
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    return package


def unpack(folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what answers one question as the arm did: input fields to output fields.

    Raises:
        ValueError: the weights that were found are not those that the arm was measured with.
    """
    recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    spec = ModelSpec(**recipe["model"])
    model = load_model(spec, folder=folder / BASE if (folder / BASE).is_dir() else None)
    lm = tuned_lm(model.lm, folder / WEIGHTS) if (folder / WEIGHTS).is_dir() else model.lm
    # Its name holds the hashes of base and adapter; the base's folder may have another name here.
    if lm.model.rpartition("@")[2] != recipe["lm"].rpartition("@")[2]:
        raise ValueError(f"the model here is {lm.model}, the arm was measured with {recipe['lm']}")
    state = json.loads((folder / PROGRAM).read_text(encoding="utf-8"))
    program = program_of(_builder(recipe["program"], folder), state, lm)

    def answer(inputs: Mapping[str, Any]) -> dict[str, Any]:
        asked = {name: inputs[name] for name in recipe["inputs"]}
        with dspy.context(lm=lm, adapter=model.prompt_format):
            prediction = program(**asked)
        return {name: prediction[name] for name in recipe["outputs"]}

    return answer


def program_of(build: Callable[[], dspy.Module], state: Mapping[str, Any], lm: dspy.LM) -> dspy.Module:
    """Return the adapted program from the state that a cell keeps."""
    program = _shaped(build, state, lm)
    program.load_state(dict(state))
    return program


def _shaped(build: Callable[[], dspy.Module], state: Mapping[str, Any], lm: dspy.LM) -> dspy.Module:
    """Return the program inside the modules that the method put around it, as its state tells."""
    if {"program", "pool"} <= state.keys():
        return NearestDemos(_shaped(build, state["program"], lm), [], int(state["demos"]), fits_context(lm))
    members = {key.partition(".")[0] for key in state if key.startswith("programs[")}
    return Vote([build() for _ in members]) if members else build()


def _check_method(method: MethodSpec) -> None:
    names = [step.name for step in method.steps]
    if "ensemble" in names[1:]:
        raise NotPortableError("a vote of programs that are themselves adapted does not keep all of its state")
    if found_by := next((i for s in method.steps if (i := s.options.get("index", BM25)) != BM25), None):
        raise NotPortableError(f"its demonstrations are found by {found_by}, which needs more than travels with it")


def _module(task: Task) -> str:
    """Return the name of the module that builds the task's program."""
    build = task.program.func if isinstance(task.program, partial) else task.program
    return str(inspect.unwrap(build).__module__)


def _build_facts(task: Task, folder: Path) -> dict[str, Any]:
    """Return how the task's program is built; a file of the user's is copied beside it."""
    if isinstance(task.program, partial) and _module(task).startswith("crossover.programs.modules."):
        return {"module": _module(task), "inputs": list(task.program.args[0]), **task.program.keywords}
    if isinstance(task.program, type) and (source := inspect.getsourcefile(task.program)):
        shutil.copy(source, folder / "program.py")
        return {"file": "program.py", "class": task.program.__name__}
    raise NotPortableError("its program is made in place, not by a module of its own")


def _builder(facts: Mapping[str, Any], folder: Path) -> Callable[[], dspy.Module]:
    """Return what builds the program before adaptation."""
    if "file" in facts:
        users: Callable[[], dspy.Module] = load_object(f"{facts['file']}:{facts['class']}", base=folder)
        return users
    options = {k: v for k, v in facts.items() if k not in ("module", "inputs")}
    return partial(import_module(facts["module"]).build, tuple(facts["inputs"]), **options)
