"""Tracking that never stops a run."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from eval.compare import Comparison
from eval.cost import cost_of
from eval.experiment import Experiment, Prices
from eval.measure import Result
from eval.progress import Progress
from eval.table import render, to_json
from eval.tracking import Tracker, TrackingError


class SafeTracker:
    """Track results; what goes wrong becomes a warning, once, and tracking is off for the rest of the run."""

    def __init__(self, experiment: Experiment, store: Path, tracking_uri: str | None, progress: Progress) -> None:
        """Open the tracking store and the experiment's parent run."""
        self.progress, self.parent = progress, ""
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

    def verdict(self, comparison: Comparison) -> None:
        """Track the comparison."""
        if self.tracker is not None:
            tracker = self.tracker
            self._try(lambda: tracker.verdict(self.parent, render(comparison), to_json(comparison)))
