"""Write runs to MLflow.

Run ids are passed to the client, never left to the active run: that is per thread, and a worker would log into nothing.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from filelock import FileLock

from crossover.eval.analysis.cost import Cost
from crossover.eval.store.facts import flat_notes
from crossover.eval.store.names import file_name
from crossover.eval.store.result import Result
from crossover.eval.tracking.addresses import artifacts_uri, follow_move, own_uri, store_uri
from crossover.eval.tracking.logged import metrics_of, params_of_cell, rows_table, tags_of, training_metrics
from crossover.models.api_keys import redact, redact_all
from crossover.models.jsonl import replacing
from crossover.programs.task import Task

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Without this tag the UI takes the experiment for one of chat traces, and hides the charts of metrics."""


LONGEST_TAG, MOST_METRICS = 8000, 900
"""Characters of a run's tag, and metrics of a request; MLflow refuses a request with more than 1,000 of all kinds."""


class TrackingError(Exception):
    """MLflow could not be reached or written; a run goes on without it."""


@contextlib.contextmanager
def typed() -> Iterator[None]:
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


T = TypeVar("T")


def made_once(make: Callable[[], T], read: Callable[[], T]) -> T:
    """Return what `make` makes in MLflow, or what `read` finds there if another machine has just made it."""
    from mlflow.exceptions import MlflowException

    try:
        return make()
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return read()


class Tracker:
    """Write an experiment as a parent run with a child run for each cell."""

    def __init__(self, store: Path, tracking_uri: str | None = None) -> None:
        """Open the tracking store; a missing sqlite store is made, which takes seconds.

        Raises:
            TrackingError: the store cannot be opened.
        """
        self.uri = store_uri(store, tracking_uri)
        store.mkdir(parents=True, exist_ok=True)
        with typed():
            if self.uri.startswith("http"):
                # MLflow's default of seven retries takes four minutes to find that no server is there.
                os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            # With a server MLflow would print an address to stdout for every run, into the document of `--json`.
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
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
        with typed():
            known = self.client.get_experiment_by_name(experiment)
        if known is not None and known.lifecycle_stage == "deleted":
            remedy = f"`MLFLOW_TRACKING_URI={redact(self.uri)} mlflow experiments restore -x {known.experiment_id}`"
            raise TrackingError(f"experiment {experiment!r} was deleted there; {remedy}, or name yours otherwise")
        with typed():
            if known is not None:
                identity = known.experiment_id
            else:
                folder = None if self.artifacts is None else f"{self.artifacts}/{quote(file_name(experiment))}"
                create = partial(self.client.create_experiment, experiment, folder, tags=EXPERIMENT_TAGS)
                identity = made_once(create, lambda: self.client.get_experiment_by_name(experiment).experiment_id)
            if run_id := self.find(identity, _parent_tags(params)):
                return run_id
            tags = {"crossover.kind": "experiment", **_parent_tags(params), "mlflow.runName": experiment}
            run_id = str(self.client.create_run(identity, tags=tags).info.run_id)
            for key, value in params.items():
                self.client.log_param(run_id, key, redact(str(value))[:6000])
            return run_id

    def holds_parent(self, experiment: str, params: Mapping[str, Any]) -> bool:
        """Return whether the experiment has a parent run for these parameters that was not deleted."""
        with typed():
            known = self.client.get_experiment_by_name(experiment)
            return known is not None and bool(self.find(known.experiment_id, _parent_tags(params)))

    def holds(self, run_id: str) -> bool:
        """Return whether MLflow has a run that was not deleted."""
        from mlflow.exceptions import MlflowException

        with typed():
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

    def find(self, experiment_id: str, tags: dict[str, str]) -> str:
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

    def result(self, parent: str, result: Result, cost: Cost, folder: Path, *, task: Task | None = None) -> str:
        """Log one measured cell as a child run, with its rows and its fitted program, and return the run's id.

        A result that was logged before keeps its run. Without its task the rows lack question and gold answer.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        cell = result.cell
        with typed():
            experiment = self.experiment_of(parent)
            if known := self._known(experiment, parent, result):
                return known
            tags = {"mlflow.parentRunId": parent, "mlflow.runName": cell.title, **tags_of(result)}
            began = int(1000 * (time.time() - result.fit.seconds - result.serve_seconds))
            run_id = str(self.client.create_run(experiment, start_time=began, tags=tags).info.run_id)
            metrics = [(name, value, 0) for name, value in metrics_of(result, cost).items()]
            self.log(run_id, [*metrics, *training_metrics(result)], params=params_of_cell(result))
            split = Dataset(
                cell.task, result.split_sha256[:12], "local", json.dumps({"split_sha256": result.split_sha256})
            )
            inputs = [DatasetInput(split, [InputTag("mlflow.data.context", "test")])]
            try:
                self.client.log_inputs(run_id, inputs)
            except Exception:
                # MLflow looks a dataset up, then inserts it: of two first writers one fails, and finds it now.
                self.client.log_inputs(run_id, inputs)
            self.client.log_table(run_id, rows_table(result, task), "rows.json")
            notes = flat_notes(result.facts, result.notes)
            self.client.log_dict(run_id, redact_all({"notes": notes, "warnings": result.warnings}), "notes.json")
            for name in ("program.json", "fit.json"):
                if (folder / name).exists():
                    self.client.log_artifact(run_id, str(folder / name), "program")
            if (folder / "fit" / "best").is_dir():
                self.client.log_artifacts(run_id, str(folder / "fit" / "best"), "weights")
            self.client.set_terminated(run_id, "FINISHED")
            return run_id

    def log(
        self,
        run_id: str,
        metrics: Sequence[tuple[str, float, int]] = (),
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log metrics, each as name, value and step, params and tags to a run, in as few requests as MLflow takes."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(1000 * time.time())
        entities = [Metric(k, v, now, step) for k, v, step in metrics]
        self.client.log_batch(
            run_id,
            metrics=entities[:MOST_METRICS],
            params=[Param(k, redact(str(v))) for k, v in (params or {}).items()],
            tags=[RunTag(k, redact(v)[:LONGEST_TAG]) for k, v in (tags or {}).items()],
        )
        for start in range(MOST_METRICS, len(entities), MOST_METRICS):
            self.client.log_batch(run_id, metrics=entities[start : start + MOST_METRICS])

    def strays(self, parent: str, runs: Set[str]) -> set[str]:
        """Return the runs of cells below an earlier parent that may move below this one without splitting those there.

        So the charts of the newest verdict show its arms where only needs or prices have changed.
        """
        experiment = self.experiment_of(parent)
        elsewhere = runs - {r.info.run_id for r in self._runs(experiment, {"mlflow.parentRunId": parent})}
        found = set[str]()
        for other in {self.client.get_run(r).data.tags.get("mlflow.parentRunId", "") for r in elsewhere}:
            below = self._runs(experiment, {"mlflow.parentRunId": other}) if other else []
            cells = {str(r.info.run_id) for r in below if "crossover.cell" in r.data.tags}
            found |= cells if cells <= runs else set()
        return found

    def experiment_of(self, run_id: str) -> str:
        """Return the id of the experiment that a run is in."""
        return str(self.client.get_run(run_id).info.experiment_id)

    def finish(self, parent: str) -> None:
        """End the parent run."""
        with typed():
            self.client.set_terminated(parent, "FINISHED")


def _parent_tags(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the tag by which the parent run of these parameters is found."""
    digest = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()
    return {"crossover.params": digest}
