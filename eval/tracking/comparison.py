"""Write a whole comparison to MLflow: the verdict into the parent run, names and findings into the arms' runs."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import Comparison
from crossover.eval.report.schema import to_json
from crossover.eval.report.table import render
from crossover.eval.tracking.addresses import VIEW
from crossover.eval.tracking.logged import arm_metrics, curves
from crossover.eval.tracking.overview import charts, description, parent_metrics, parent_tags, run_tags
from crossover.eval.tracking.tracker import Tracker, typed
from crossover.models.api_keys import redact, redact_all

NOTE = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run."""


def log_comparison(tracker: Tracker, parent: str, comparison: Comparison, runs: Mapping[str, str]) -> None:
    """Write verdict, metrics and description into the parent run, and what the verdict says of it into each run.

    `runs` maps keys of cells to their run ids.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    with typed():
        tracker.client.log_text(parent, redact(render(comparison)), "comparison.txt")
        tracker.client.log_dict(parent, redact_all(to_json(comparison)), "comparison.json")
        metrics = [(k, v, 0) for k, v in parent_metrics(comparison).items()]
        tracker.log(parent, metrics, tags=parent_tags(comparison) | {NOTE: description(comparison)})
        for arm in comparison.arms:
            for key, tags in zip(arm.cells, run_tags(arm, comparison), strict=True):
                if key in runs:
                    tracker.log(runs[key], tags=tags)
        drawn = [_log_curve(tracker, parent, arms) for arms in curves(comparison.arms)]
        state = json.dumps(charts(parent, curves=drawn, arms=len(comparison.arms)))
        # As the page packs it itself: a tag of an experiment holds 5,000 characters.
        packed = "deflate;" + base64.b64encode(zlib.compress(state.encode())).decode()
        tracker.client.set_experiment_tag(tracker.experiment_of(parent), f"mlflow.sharedViewState.{VIEW}", packed)


def _log_curve(tracker: Tracker, parent: str, arms: Sequence[Arm]) -> str:
    """Log one method over train sizes as the steps of a run of its own, and return the run's id."""
    first = arms[0]
    facts = {
        "crossover.kind": "curve",
        "task": first.task,
        "method": first.method,
        "model": first.model,
        "knowledge": first.knowledge,
    }
    tags, experiment = {"mlflow.parentRunId": parent, **facts}, tracker.experiment_of(parent)
    run_id = tracker.find(experiment, tags)
    if not run_id:
        tags |= {"mlflow.runName": f"{first.method} over train size ({first.task})"}
        run_id = str(tracker.client.create_run(experiment, tags=tags).info.run_id)
    points = [(f"learning/{k}", v, arm.train_size or 0) for arm in arms for k, v in arm_metrics(arm).items()]
    tracker.log(run_id, points)
    tracker.client.set_terminated(run_id, "FINISHED")
    return run_id
