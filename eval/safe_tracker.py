"""Tracking that never stops a run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from eval.arm import Arm
from eval.compare import Comparison
from eval.cost import cost_of
from eval.experiment import Experiment, Prices
from eval.measure import Result
from eval.portable import NotPortableError, copy_rooms, pack
from eval.progress import Progress
from eval.table import render, to_json
from eval.tracking import Tracker, TrackingError, registered_name
from programs.task import Task


class SafeTracker:
    """Track results; what goes wrong becomes a warning, once, and tracking is off for the rest of the run."""

    def __init__(self, experiment: Experiment, store: Path, tracking_uri: str | None, progress: Progress) -> None:
        """Open the tracking store and the experiment's parent run."""
        self.progress, self.parent, self.store = progress, "", store
        self.tracker: Tracker | None = None
        self._try(lambda: self._open(experiment, store, tracking_uri))

    def _open(self, experiment: Experiment, store: Path, tracking_uri: str | None) -> None:
        tracker = Tracker(store, tracking_uri)
        self.parent = tracker.parent(experiment.name, {k: v for k, v in asdict(experiment).items() if k != "file"})
        self.tracker = tracker

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except TrackingError as e:
            self.tracker = None
            self.progress.note(f"warning: MLflow: {e}; the rows are in the store, tracking is off for this run")

    def result(self, result: Result, prices: Prices, folder: Path) -> None:
        """Track a measured cell and remember its run id."""
        if self.tracker is not None:
            tracker = self.tracker

            def log() -> None:
                result.mlflow_run_id = tracker.result(self.parent, result, cost_of(result, prices), folder)

            self._try(log)

    def winners(self, comparison: Comparison, results: Mapping[str, Result], tasks: Mapping[str, Task]) -> None:
        """Register the arm that each verdict chose, by its first seed: the best one would be a choice made on test."""
        for verdict in comparison.verdicts:
            if (tracker := self.tracker) is None:
                return
            name = registered_name(comparison.experiment, verdict.task)
            arms = [a for a in comparison.arms if a.task == verdict.task and a.name == verdict.choose]
            if arms:
                self._try(partial(self._register, tracker, name, results[arms[0].cells[0]], tasks[verdict.task]))
            else:
                self._try(partial(tracker.unregister, name))

    def _register(self, tracker: Tracker, name: str, result: Result, task: Task) -> None:
        with TemporaryDirectory(prefix="crossover-model-") as folder:
            arm, rooms, work = (Path(folder) / part for part in ("arm", "rooms", "work"))
            for part in (arm, rooms, work):
                part.mkdir()
            try:
                pack(self.store, result, task, arm)
            except (NotPortableError, OSError) as e:
                self.progress.note(f"warning: {name} is not registered in MLflow: {e}")
                return
            version = tracker.register(name, result.mlflow_run_id, result.key, arm, copy_rooms(rooms), work)
            self.progress.note(f"registered in MLflow: models:/{name}/{version}, alias winner")

    def verdict(self, comparison: Comparison) -> None:
        """Track the comparison, and a learning curve for each method that was fitted on several train sizes."""
        families: dict[tuple[str, ...], list[Arm]] = {}
        for arm in comparison.arms:
            if arm.train_size is not None and arm.score.n:
                family = (arm.task, arm.method, arm.model, arm.knowledge, arm.retrieval)
                families.setdefault(family, []).append(arm)
        for arms in families.values():
            if self.tracker is not None and len(arms) > 1:
                self._try(partial(self.tracker.curve, self.parent, sorted(arms, key=lambda a: a.train_size or 0)))
        if self.tracker is not None:
            tracker = self.tracker
            self._try(lambda: tracker.verdict(self.parent, render(comparison), to_json(comparison)))
