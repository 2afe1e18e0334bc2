"""A fitted arm as a folder that others load; an export and a registered winner are the same folder.

program.json is the DSPy program, adapter/, merged/ or head/ the trained weights with tokenizer and chat template,
README.md the model card, serve.sh the command that serves the weights. recipe.json tells `load_package` how to answer
a question with all of it; it holds no key.
"""

import inspect
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import dspy

from crossover.eval.analysis.arm import arms_of
from crossover.eval.experiment.catalog import ROOT
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Prices
from crossover.eval.store.cells import cell_folder, check_fitted, inside
from crossover.eval.store.result import Result
from crossover.eval.tracking.card import ADAPTER, HEAD, MERGED, base_of, card, serving_command
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json
from crossover.models.load import LoadedModel, load_model, local_lm, tuned_lm
from crossover.models.prompt import engine_of
from crossover.models.spec import ModelSpec
from crossover.models.weights import folder_sha256
from crossover.optimizers.common.context import fits_context
from crossover.optimizers.common.nearest import BM25, NearestDemos
from crossover.optimizers.ensemble import Vote
from crossover.programs.data import load_and_check
from crossover.programs.load import load_object
from crossover.programs.spec import TaskSpec
from crossover.programs.task import Task

SUBPACKAGES = ("models", "programs", "optimizers", "eval")
RECIPE, PROGRAM = "recipe.json", "program.json"


class NotPortableError(UserError):
    """The arm needs something that cannot travel; the message says what."""


def write_package(
    store: Path, result: Result, folder: Path, *, task: Task | None = None, merge_as: str = ""
) -> list[str]:
    """Write the arm of a finished cell to a folder and return a line for each part.

    Without its task there is no recipe. `merge_as` is the type of the merged weights to write beside an adapter, which
    takes the memory of two models; empty for none.

    Raises:
        NotPortableError: no recipe can be written for the arm.
        UserError: the weights are gone or changed, or cannot be written.
    """
    source = cell_folder(store, result.key)
    check_fitted(source)
    fit = json.loads((source / "fit.json").read_text(encoding="utf-8"))
    recipe = _recipe(result, task) if task is not None else {}
    folder.mkdir(parents=True, exist_ok=True)
    state = json.loads((source / PROGRAM).read_text(encoding="utf-8"))
    write_json(folder / PROGRAM, state | {"metadata": {"dependency_versions": _versions()}})
    lines = [f'{PROGRAM}: the DSPy program; program.load("{PROGRAM}")']
    artifact, difference = inside(source, str(fit["artifact"])) if fit.get("artifact") else None, None
    if artifact is not None:
        written, difference = _write_weights(result, artifact, folder, merge_as)
        lines += written
    if task is not None:
        if "file" in recipe["program"]:
            shutil.copy(inspect.getfile(task.program), folder / recipe["program"]["file"])
        trained = _weights_of(folder)
        weights = folder_sha256(trained) if trained else ""
        write_json(folder / RECIPE, recipe | {"lm": fit["lm"], "weights_sha256": weights})
        lines.append(f"{RECIPE}: how crossover answers with it")
    text = card(result, arms_of([result], Prices())[0], fit["notes"], folder, difference)
    (folder / "README.md").write_text(text, encoding="utf-8")
    serving = serving_command(result, folder, Path("."))
    (folder / "serve.sh").write_text(f'#!/bin/sh\ncd "$(dirname "$0")" || exit\n{serving}\n', encoding="utf-8")
    return [*lines, "README.md: the model card"]


def _versions() -> dict[str, str]:
    """Return the versions that DSPy compares when it loads a program."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "dspy": version("dspy"), "cloudpickle": version("cloudpickle")}


def _write_weights(result: Result, artifact: Path, folder: Path, merge_as: str) -> tuple[list[str], float | None]:
    """Write the trained weights; return a line for each part, and by how much merging changed a logit."""
    from crossover.finetune.training.merge import copy_weights, merge, write_tokenizer

    base = base_of(result)
    if (artifact / "head.json").exists():
        if result.cell.method.name == "chain":
            raise NotPortableError(
                f"{result.key} is a head on weights of an earlier step, which is not exported; use `sft` alone"
            )
        copy_weights(artifact, folder / HEAD)
        return [f"{HEAD}/: the classification head (safetensors) and its labels; models/heads.py loads it"], None
    if not (artifact / "adapter_config.json").exists():
        copy_weights(artifact, folder / MERGED)
        write_tokenizer(base, [folder / MERGED])
        return [f"{MERGED}/: the trained weights"], None
    copy_weights(artifact, folder / ADAPTER)
    config = json.loads((folder / ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    write_json(folder / ADAPTER / "adapter_config.json", config | {"base_model_name_or_path": str(base)})
    write_tokenizer(base, [folder / ADAPTER])
    lines = [f"{ADAPTER}/: the PEFT adapter, with tokenizer and chat template"]
    if not merge_as:
        return lines, None
    merged = merge(base, artifact, folder / MERGED, dtype=merge_as)
    if not merged.agree:
        raise UserError(
            f"merged and unmerged logits differ by up to {merged.difference:.2g}; export with --dtype float32"
        )
    write_tokenizer(base, [folder / MERGED])
    line = f"{MERGED}/: {merge_as} weights; logits agree with the adapter's to {merged.difference:.1g}"
    return [*lines, line], merged.difference


def _weights_of(folder: Path) -> Path | None:
    """Return the weights that the arm was measured with: merged ones stand in for an adapter elsewhere, never here."""
    return next((folder / name for name in (ADAPTER, MERGED, HEAD) if (folder / name).is_dir()), None)


def recorded_task(params: Mapping[str, Any], name: str) -> Task | None:
    """Return a task by the settings of an experiment, or None when its data cannot be read any more."""
    for spec in params.get("tasks", ()):
        if spec["name"] == name:
            # A judge would need a model, and no answer is graded here.
            return load_and_check(TaskSpec(**spec | {"judge": None}))[0]
    return None


def _recipe(result: Result, task: Task) -> dict[str, Any]:
    """Return what `load_package` needs to know of an arm, apart from its weights.

    Raises:
        NotPortableError: the arm needs something that cannot travel.
    """
    cell = result.cell
    _check_method(cell.method)
    if cell.knowledge.test in ("retrieved", "noisy") and "multihop" in _module(task):
        raise NotPortableError("its program searches while it answers, and the index does not travel")
    return {
        "cell": result.key,
        "task": cell.task,
        "method": cell.method.label,
        "seed": cell.seed,
        "model": asdict(replace(cell.model, prompt_format=_format_of(result))),
        "program": _build_facts(task),
        "inputs": [*task.inputs, *(["passages"] if task.corpus else [])],
        "outputs": list(task.outputs),
    }


def _format_of(result: Result) -> str:
    """Return the prompt format that the arm was measured in, which may have been chosen on val."""
    return str(result.notes.get("prompt_format") or result.cell.model.prompt_format)


def _check_method(method: MethodSpec) -> None:
    names = [step.name for step in method.steps]
    if any(step.name == "head" and step.options.get("base") == "full" for step in method.steps):
        raise NotPortableError("its head stands on whole weights that were trained with it")
    if "ensemble" in names[1:]:
        raise NotPortableError("a vote of programs that are themselves adapted does not keep all of its state")
    if index := next((i for s in method.steps if (i := s.options.get("index", BM25)) != BM25), None):
        raise NotPortableError(f"its demonstrations are found by {index}, which needs more than travels with it")


def _module(task: Task) -> str:
    """Return the name of the module that builds the task's program."""
    build = task.program.func if isinstance(task.program, partial) else task.program
    return str(inspect.unwrap(build).__module__)


def _build_facts(task: Task) -> dict[str, Any]:
    """Return how the task's program is built: by a module of ours with its arguments, or by the user's file."""
    if isinstance(task.program, partial) and _module(task).startswith("crossover.programs.modules."):
        return {"module": _module(task), "inputs": list(task.program.args[0]), **task.program.keywords}
    if isinstance(task.program, type) and inspect.getsourcefile(task.program):
        return {"file": "program.py", "class": task.program.__name__}
    raise NotPortableError("its program is made in place, not by a module of its own")


def copy_package(folder: Path) -> Path:
    """Copy the part of this package that `load_package` needs and return the copy."""
    package = folder / ROOT.name
    package.mkdir()
    shutil.copy(ROOT / "__init__.py", package)
    for name in SUBPACKAGES:
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    return package


class Opened(NamedTuple):
    """An arm that can be asked."""

    program: dspy.Module
    lm: dspy.LM
    prompt_format: dspy.Adapter
    recipe: dict[str, Any]


def open_package(
    folder: Path, *, load: Callable[[ModelSpec], LoadedModel] = load_model, served: ModelSpec | None = None
) -> Opened:
    """Return the arm of a folder with its own model, or with one that a server has under the name of `served`.

    `load` loads the model; one that loads each base once lets adapters share it.

    Raises:
        ValueError: base or weights are not those that the arm was measured with; those of a server are not checked.
    """
    recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    model = load(served or ModelSpec.stored(recipe["model"]))
    lm = model.lm if served else _measured_lm(model.lm, folder, recipe)
    state = json.loads((folder / PROGRAM).read_text(encoding="utf-8"))
    program = shaped(_builder(recipe["program"], folder), state, lm, recipe["outputs"])
    program.load_state(state)
    return Opened(program, lm, model.prompt_format, recipe)


def _measured_lm(lm: dspy.LM, folder: Path, recipe: Mapping[str, Any]) -> dspy.LM:
    """Return the model with the trained weights of a folder, held against the hashes of the recipe."""
    trained = _weights_of(folder)
    # The name ends in the hash of the base and, after a sign, of what was trained; the folder may have another name.
    base, measured = (name.rpartition("@")[2] for name in (lm.model, recipe["lm"]))
    if (measured[: len(base)] if trained else measured) != base:
        raise ValueError(f"the model here is {lm.model}, the arm was measured with {recipe['lm']}")
    if trained is None:
        return lm
    if folder_sha256(trained) != recipe["weights_sha256"]:
        raise ValueError(f"{trained}: not the weights that the arm was measured with")
    return _with_head(lm, trained) if trained.name == HEAD else tuned_lm(lm, trained)


def load_package(folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return a function that answers one question as the arm did: input fields to output fields.

    Raises:
        ValueError: base or weights are not those that the arm was measured with.
    """
    program, lm, prompt_format, recipe = open_package(folder)

    def answer(inputs: Mapping[str, Any]) -> dict[str, Any]:
        asked = {name: inputs[name] for name in recipe["inputs"]}
        with dspy.context(lm=lm, adapter=prompt_format):
            prediction = program(**asked)
        return {name: prediction[name] for name in recipe["outputs"]}

    return answer


def _with_head(lm: dspy.LM, folder: Path) -> dspy.LM:
    """Return a model that answers by the classification head of a folder, on the base or on the adapter beside it."""
    from crossover.models.heads import HeadEngine
    from crossover.models.token_engine import BASE as UNTRAINED

    engine = engine_of(lm)
    adapter = engine.add_adapter(folder) if (folder / "adapter_config.json").exists() else UNTRAINED
    head = HeadEngine.load(folder, engine, adapter=adapter)
    return local_lm(f"{lm.model}+head-{head.sha256[:12]}", head, lm.kwargs["max_tokens"], 0.0)


def shaped(
    build: Callable[[], dspy.Module], state: Mapping[str, Any], lm: dspy.LM, outputs: Sequence[str]
) -> dspy.Module:
    """Return the program inside the modules that the method put around it, which its state shows."""
    if {"program", "pool"} <= state.keys():
        return NearestDemos(shaped(build, state["program"], lm, outputs), [], int(state["demos"]), fits_context(lm))
    members = {key.partition(".")[0] for key in state if key.startswith("programs[")}
    return Vote([build() for _ in members], outputs) if members else build()


def _builder(facts: Mapping[str, Any], folder: Path) -> Callable[[], dspy.Module]:
    """Return a function that builds the program before adaptation."""
    if "file" in facts:
        users: Callable[[], dspy.Module] = load_object(f"{facts['file']}:{facts['class']}", base=folder)
        return users
    options = {k: v for k, v in facts.items() if k not in ("module", "inputs")}
    return partial(import_module(facts["module"]).build, tuple(facts["inputs"]), **options)
