"""Write runs to MLflow; registered.py, which MLflow itself runs, and server.py are the others that import it.

Run ids are passed to the client, never left to the active run: that is per thread, and a worker would log into nothing.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.cost import Cost
from crossover.eval.store.facts import flat_notes
from crossover.eval.store.names import file_name
from crossover.eval.store.result import Result
from crossover.eval.tracking.addresses import artifacts_uri, follow_move, own_uri, store_uri
from crossover.eval.tracking.logged import curve_metrics, metrics_of, rows_table, run_name, tags_of, train_examples
from crossover.models.api_keys import redact, redact_all
from crossover.models.jsonl import replacing

WINNER = "winner"
"""Alias of the model version that the last verdict chose."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Without this tag the UI takes the experiment for one of chat traces, and hides the charts of metrics."""


class TrackingError(Exception):
    """MLflow could not be reached or written; a run goes on without it."""


@contextlib.contextmanager
def _typed() -> Iterator[None]:
    """Raise a `TrackingError` of one line, without keys, for whatever MLflow or its database raises."""
    try:
        yield
    except Exception as e:
        lines = redact(str(e)).strip().splitlines() or [""]
        raise TrackingError(f"{type(e).__name__}: {lines[0][:200]}") from e


def _make_database(store: Path) -> None:
    """Make MLflow's database of a store where there is none, whole or not at all: MLflow mends no half-made one."""
    from mlflow import MlflowClient

    file, locks = store / "mlflow.db", store / "locks"
    if file.exists():
        return
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / "mlflow.lock"):
        for killed in store.glob(f"{file.name}.*.part*"):
            killed.unlink()
        if not file.exists():
            with replacing(file) as draft:
                MlflowClient(f"sqlite:///{draft.resolve()}").search_experiments(max_results=1)


class Tracker:
    """Write an experiment as a parent run with a child run for each cell."""

    def __init__(self, store: Path, tracking_uri: str | None = None) -> None:
        """Open the tracking store; a missing sqlite store is made, which takes seconds.

        Raises:
            TrackingError: the store cannot be opened.
        """
        self.uri = store_uri(store, tracking_uri)
        store.mkdir(parents=True, exist_ok=True)
        with _typed():
            if self.uri.startswith("http"):
                # MLflow's default of seven retries takes four minutes to find that no server is there.
                os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            follow_move(store, self.uri)
            from mlflow import MlflowClient

            # Not before the import, which sets these levels itself.
            for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
            if self.uri == own_uri(store):
                _make_database(store)
            self.client = MlflowClient(self.uri)
            self.client.search_experiments(max_results=1)
        self.artifacts = artifacts_uri(store) if self.uri.startswith("sqlite") else None

    def parent(self, experiment: str, params: Mapping[str, Any]) -> str:
        """Return the id of the experiment's parent run, the same one for the same parameters.

        Raises:
            TrackingError: the experiment was deleted in MLflow, or MLflow could not be reached or written.
        """
        with _typed():
            known = self.client.get_experiment_by_name(experiment)
        if known is not None and known.lifecycle_stage == "deleted":
            remedy = f"`MLFLOW_TRACKING_URI={redact(self.uri)} mlflow experiments restore -x {known.experiment_id}`"
            raise TrackingError(f"experiment {experiment!r} was deleted there; {remedy}, or name yours otherwise")
        with _typed():
            if known is not None:
                identity = known.experiment_id
            else:
                folder = None if self.artifacts is None else f"{self.artifacts}/{quote(file_name(experiment))}"
                identity = self.client.create_experiment(experiment, artifact_location=folder, tags=EXPERIMENT_TAGS)
            if run_id := self._find(identity, _parent_tags(params)):
                return run_id
            tags = {"crossover.kind": "experiment", **_parent_tags(params), "mlflow.runName": experiment}
            run_id = str(self.client.create_run(identity, tags=tags).info.run_id)
            for key, value in params.items():
                self.client.log_param(run_id, key, redact(str(value))[:6000])
            return run_id

    def holds_parent(self, experiment: str, params: Mapping[str, Any]) -> bool:
        """Return whether the experiment has a parent run for these parameters that was not deleted."""
        with _typed():
            known = self.client.get_experiment_by_name(experiment)
            return known is not None and bool(self._find(known.experiment_id, _parent_tags(params)))

    def holds(self, run_id: str) -> bool:
        """Return whether MLflow has a run that was not deleted."""
        from mlflow.exceptions import MlflowException

        with _typed():
            try:
                return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
            except MlflowException as e:
                if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False

    def _runs(self, experiment_id: str, tags: dict[str, str]) -> list[Any]:
        """Return the runs with these tags, the newest first."""
        # MLflow's filters cannot quote a quote.
        conditions = [f"tags.`{k}` = '{v}'" for k, v in tags.items() if "'" not in v]
        found = self.client.search_runs([experiment_id], " and ".join(conditions))
        return [run for run in found if all(run.data.tags.get(k) == v for k, v in tags.items())]

    def _find(self, experiment_id: str, tags: dict[str, str]) -> str:
        """Return the id of the newest run with these tags, or an empty string."""
        return next((str(run.info.run_id) for run in self._runs(experiment_id, tags)), "")

    def _known(self, experiment_id: str, parent: str, result: Result) -> str:
        """Return the id of this very result's finished run, or an empty string; delete outdated runs of its cell."""
        wanted = tags_of(result)
        for run in self._runs(experiment_id, {"mlflow.parentRunId": parent, "crossover.cell": result.key}):
            same = all(run.data.tags.get(k) == wanted.get(k) for k in ("crossover.rows", "dropped"))
            if same and run.info.status == "FINISHED":
                return str(run.info.run_id)
            # Its process was killed while it logged, or the arm had left a race and was scored further since.
            if run.info.status != "FINISHED" or "dropped" in run.data.tags:
                self.client.delete_run(run.info.run_id)
        return ""

    def result(self, parent: str, result: Result, cost: Cost, folder: Path) -> str:
        """Log one measured cell as a child run, with its rows and its fitted program, and return the run's id.

        A result that was logged before keeps its run.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        cell = result.cell
        with _typed():
            experiment = self.client.get_run(parent).info.experiment_id
            if known := self._known(experiment, parent, result):
                return known
            tags = {"mlflow.parentRunId": parent, "mlflow.runName": run_name(result), **tags_of(result)}
            now = int(1000 * time.time())
            began = now - int(1000 * (result.fit.seconds + result.serve_seconds))
            run_id = str(self.client.create_run(experiment, start_time=began, tags=tags).info.run_id)
            params = {
                "task": cell.task,
                "model": cell.model.name,
                "method": cell.method.name,
                "train_size": train_examples(result),
                "knowledge": cell.knowledge.label,
                "seed": cell.seed,
                "retrieval": cell.retrieval.label if cell.retrieval else "none",
                "split_sha256": result.split_sha256,
                **{f"option.{k}": v for k, v in cell.method.options.items()},
            }
            metrics = [Metric(k, v, now, train_examples(result)) for k, v in metrics_of(result, cost).items()]
            self.client.log_batch(run_id, metrics=metrics, params=[Param(k, redact(str(v))) for k, v in params.items()])
            split = Dataset(
                cell.task, result.split_sha256[:12], "local", json.dumps({"split_sha256": result.split_sha256})
            )
            inputs = [DatasetInput(split, [InputTag("mlflow.data.context", "test")])]
            try:
                self.client.log_inputs(run_id, inputs)
            except Exception:
                # MLflow looks a dataset up, then inserts it: of two first writers one fails, and finds it now.
                self.client.log_inputs(run_id, inputs)
            self.client.log_table(run_id, rows_table(result), "rows.json")
            notes = flat_notes(result.facts, result.notes)
            self.client.log_dict(run_id, redact_all({"notes": notes, "warnings": result.warnings}), "notes.json")
            for name in ("program.json", "fit.json"):
                if (folder / name).exists():
                    self.client.log_artifact(run_id, str(folder / name), "program")
            if (folder / "fit" / "best").is_dir():
                self.client.log_artifacts(run_id, str(folder / "fit" / "best"), "weights")
            self.client.set_terminated(run_id, "FINISHED")
            return run_id

    def register(self, name: str, run_id: str, cell: str, arm: Path, code: Sequence[str], work: Path) -> str:
        """Register an arm's package as the winner under `name`, to be loaded by MLflow alone; return its version.

        A winner that was registered before keeps its version. `work` is an empty folder for the model's files.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.models import ModelSignature
        from mlflow.pyfunc import save_model
        from mlflow.types import ColSpec, DataType, Schema
        from mlflow.types.schema import Array

        with _typed():
            try:
                current = self.client.get_model_version_by_alias(name, WINNER)
                if current.tags.get("crossover.cell") == cell:
                    return str(current.version)
            except MlflowException as e:
                if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
            recipe = json.loads((arm / "recipe.json").read_text(encoding="utf-8"))
            text = Array(DataType.string)
            columns = [ColSpec(text if i == "passages" else DataType.string, i) for i in recipe["inputs"]]
            with warnings.catch_warnings():
                # MLflow asks for an example input, on which it would load and run the model once more.
                warnings.simplefilter("ignore")
                save_model(
                    str(work / "model"),
                    python_model=str(Path(__file__).with_name("registered.py")),
                    code_paths=list(code),
                    artifacts={"arm": str(arm)},
                    pip_requirements=requirements(),
                    signature=ModelSignature(Schema(columns)),
                )
            self.client.log_artifacts(run_id, str(work / "model"), "model")
            with contextlib.suppress(MlflowException):  # the name has a version already
                self.client.create_registered_model(name)
            uri = f"{self.client.get_run(run_id).info.artifact_uri}/model"
            tags = {"crossover.cell": cell, **{k: str(recipe[k]) for k in ("task", "method", "seed")}}
            version = str(self.client.create_model_version(name, uri, run_id=run_id, tags=tags).version)
            self.client.set_registered_model_alias(name, WINNER, version)
            return version

    def unregister(self, name: str) -> None:
        """Remove the alias of the winner, for a verdict that abstains; the versions stay."""
        from mlflow.exceptions import MlflowException

        with _typed(), contextlib.suppress(MlflowException):  # there was no winner
            self.client.delete_registered_model_alias(name, WINNER)

    def curve(self, parent: str, arms: Sequence[Arm]) -> None:
        """Log one method over train sizes as the steps of a run of its own, which MLflow draws as a learning curve."""
        from mlflow.entities import Metric

        first = arms[0]
        facts = {
            "crossover.kind": "curve",
            "task": first.task,
            "method": first.method,
            "model": first.model,
            "knowledge": first.knowledge,
        }
        with _typed():
            experiment = self.client.get_run(parent).info.experiment_id
            tags = {"mlflow.parentRunId": parent, **facts}
            run_id = self._find(experiment, tags)
            if not run_id:
                tags |= {"mlflow.runName": f"{first.method.partition(' ')[0]} curve {first.method} {first.task}"}
                run_id = str(self.client.create_run(experiment, tags=tags).info.run_id)
            now = int(1000 * time.time())
            metrics = [Metric(k, v, now, arm.train_size) for arm in arms for k, v in curve_metrics(arm).items()]
            self.client.log_batch(run_id, metrics=metrics)
            self.client.set_terminated(run_id, "FINISHED")

    def verdict(self, parent: str, text: str, data: dict[str, Any]) -> None:
        """Write the comparison into the parent run."""
        with _typed():
            text = redact(text)
            self.client.log_text(parent, text, "comparison.txt")
            self.client.log_dict(parent, redact_all(data), "comparison.json")
            self.client.set_tag(parent, "mlflow.note.content", f"```\n{text}\n```")

    def finish(self, parent: str) -> None:
        """End the parent run."""
        with _typed():
            self.client.set_terminated(parent, "FINISHED")


def _parent_tags(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the tag by which the parent run of these parameters is found."""
    digest = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()
    return {"crossover.params": digest}


def requirements() -> list[str]:
    """Return the packages that a registered arm runs on, in the versions that it was measured with."""
    models = ("torch", "transformers", "peft", "gguf", "filelock", "platformdirs")
    return [f"{p}=={version(p)}" for p in ("mlflow", "dspy", *models, "numpy", "scipy", "bm25s", "PyYAML", "click")]
