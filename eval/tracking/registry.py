"""Register winners and instructions in MLflow's model registry."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from crossover.eval.tracking.tracker import Tracker, made_once, typed

WINNER = "winner"
"""Alias of the version that the last verdict chose."""


def register(
    tracker: Tracker, name: str, run_id: str, arm: Path, *, code: Sequence[str], work: Path, about: str = ""
) -> str:
    """Register an arm's package as the winner under `name`, to be loaded by MLflow alone; return its version.

    A winner that is marked already keeps its version, with the new description. `work` is an empty folder for the
    model's files; `about` is the description, in Markdown.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    client, recipe = tracker.client, json.loads((arm / "recipe.json").read_text(encoding="utf-8"))
    with typed():
        try:
            current = client.get_model_version_by_alias(name, WINNER)
            if current.tags.get("crossover.cell") == recipe["cell"]:
                if about and about != current.description:
                    client.update_model_version(name, current.version, about)
                    client.update_registered_model(name, about)
                return str(current.version)
        except MlflowException as e:
            if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        text = Array(DataType.string)
        inputs = [ColSpec(text if i == "passages" else DataType.string, i) for i in recipe["inputs"]]
        outputs = [ColSpec(DataType.string, o, required=False) for o in (*recipe["outputs"], "failure")]
        with warnings.catch_warnings():
            # MLflow asks for an example input, on which it would load and run the model once more.
            warnings.simplefilter("ignore")
            save_model(
                str(work / "model"),
                python_model=str(Path(__file__).with_name("registered.py")),
                code_paths=list(code),
                artifacts={"arm": str(arm)},
                pip_requirements=requirements(),
                signature=ModelSignature(Schema(inputs), Schema(outputs)),
            )
        client.log_artifacts(run_id, str(work / "model"), "model")
        made_once(partial(client.create_registered_model, name), partial(client.get_registered_model, name))
        uri = f"{client.get_run(run_id).info.artifact_uri}/model"
        tags = {"crossover.cell": recipe["cell"], **{k: str(recipe[k]) for k in ("task", "method", "seed")}}
        number = str(client.create_model_version(name, uri, run_id=run_id, tags=tags, description=about).version)
        client.update_registered_model(name, description=about)
        client.set_registered_model_alias(name, WINNER, number)
        return number


def unregister(tracker: Tracker, name: str) -> None:
    """Remove the alias of the winner, for a verdict that abstains; the versions stay."""
    from mlflow.exceptions import MlflowException

    with typed(), contextlib.suppress(MlflowException):  # there was no winner
        tracker.client.delete_registered_model_alias(name, WINNER)


def requirements() -> list[str]:
    """Return the packages that a registered arm runs on, in the versions that it was measured with."""
    models = ("torch", "transformers", "peft", "gguf", "llguidance", "filelock", "platformdirs")
    return [f"{p}=={version(p)}" for p in ("mlflow", "dspy", *models, "numpy", "scipy", "bm25s", "PyYAML", "click")]


def register_instructions(
    tracker: Tracker, name: str, parent: str, instructions: Mapping[str, str], winner: str = ""
) -> None:
    """Keep each text of instructions as a version of one prompt, and link it to the runs that were asked by it.

    `instructions` maps run ids to texts, `winner` is the run whose version gets the alias. A text that is there keeps
    its version.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    client = tracker.client
    with typed():
        if (prompt := client.get_prompt(name)) is None:
            # The tag by which MLflow lists a prompt in an experiment.
            shown = {"_mlflow_experiment_ids": f",{tracker.experiment_of(parent)},"}
            create = partial(client.create_prompt, name, "Instructions of the programs that were compared", shown)
            prompt = made_once(create, partial(client.get_prompt, name))
        versions = {k: v for k, v in prompt.tags.items() if k.startswith("sha256.")}
        for run_id, text in instructions.items():
            key = f"sha256.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            if key not in versions:
                # A double brace would be read as a variable of the template.
                made = client.create_prompt_version(name, text.replace("{{", "{ {"))
                versions[key] = str(made.version)
                client.set_prompt_tag(name, key, versions[key])
            # MLflow's own call for it looks for the run in the store of the working folder, which it makes.
            client.set_tag(run_id, "mlflow.linkedPrompts", json.dumps([{"name": name, "version": versions[key]}]))
            if run_id == winner:
                client.set_prompt_alias(name, WINNER, int(versions[key]))
