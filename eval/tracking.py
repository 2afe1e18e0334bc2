"""Keep every run in MLflow; the one file that imports it.

Explicit run ids through the client, never the active run: that is per thread, and a worker would log into nothing.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.cost import Cost
from eval.measure import Result
from eval.stats import quantile_interval, score_interval
from models.secret import redact


class TrackingError(Exception):
    """MLflow could not be reached or written; the run goes on without it."""


def store_uri(store: Path, tracking_uri: str | None) -> str:
    """Return the URI: the flag, else MLFLOW_TRACKING_URI, else sqlite in the store."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(store / 'mlflow.db').resolve()}"


@contextlib.contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except Exception as e:
        told = redact(str(e)).strip().splitlines() or [""]
        raise TrackingError(f"{type(e).__name__}: {told[0][:200]}") from e


class Tracker:
    """One parent run for an experiment, a child for each cell."""

    def __init__(self, store: Path, tracking_uri: str | None = None) -> None:
        """Open the store; a sqlite store is made when it is not there.

        Raises:
            TrackingError: the store cannot be opened.
        """
        self.uri = store_uri(store, tracking_uri)
        store.mkdir(parents=True, exist_ok=True)
        with _typed():
            if self.uri.startswith("http"):
                # Seven retries, MLflow's own number, hold a run up for four minutes when no server is there.
                os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            from mlflow import MlflowClient

            # After the import, which sets levels of its own.
            for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
            self.client = MlflowClient(self.uri)
            self.artifacts = (store / "artifacts").resolve().as_uri() if self.uri.startswith("sqlite") else None

    def open(self) -> None:
        """Make the store's tables where they are missing.

        Raises:
            TrackingError: MLflow could not be reached or written.
        """
        with _typed():
            self.client.search_experiments(max_results=1)

    def parent(self, experiment: str, params: dict[str, Any]) -> str:
        """Return the experiment's parent run, the same one for the same parameters."""
        with _typed():
            found = self.client.get_experiment_by_name(experiment)
            folder = None if self.artifacts is None else f"{self.artifacts}/{experiment}"
            identity = (
                found.experiment_id if found else self.client.create_experiment(experiment, artifact_location=folder)
            )
            digest = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()
            if known := self._find(identity, {"crossover.params": digest}):
                return known
            tags = {"crossover.kind": "experiment", "crossover.params": digest, "mlflow.runName": experiment}
            run_id = str(self.client.create_run(identity, tags=tags).info.run_id)
            for key, value in params.items():
                self.client.log_param(run_id, key, str(value)[:6000])
            return run_id

    def _find(self, experiment_id: str, tags: dict[str, str]) -> str:
        """Return the newest run that has these tags, or an empty string."""
        wanted = " and ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items())
        found = self.client.search_runs([experiment_id], wanted, max_results=1)
        return str(found[0].info.run_id) if found else ""

    def result(self, parent: str, result: Result, cost: Cost, folder: Path) -> str:
        """Log one measured cell as a child run, with its rows and its fitted program, and return the run's id.

        A cell that is logged already keeps its run.
        """
        from mlflow.entities import Metric, Param

        cell = result.cell
        with _typed():
            experiment = self.client.get_run(parent).info.experiment_id
            identity = {
                "mlflow.parentRunId": parent,
                "crossover.cell": result.key,
                "crossover.rows": result.rows_sha256,
            }
            if known := self._find(experiment, identity):
                if self.client.get_run(known).info.status == "FINISHED":
                    return known
                # Its process was killed while it logged; half of a cell is of no use.
                self.client.delete_run(known)
            name = f"{cell.task} {cell.method.label} seed={cell.seed}"
            tags = identity | {"mlflow.runName": name, "crossover.kind": "cell"}
            run_id = str(self.client.create_run(experiment, tags=tags).info.run_id)
            params = {
                "task": cell.task, "model": cell.model.name, "method": cell.method.name,
                "train_size": cell.train_size or "all", "knowledge": cell.knowledge.label, "seed": cell.seed,
                "retrieval": cell.retrieval.label if cell.retrieval else "none",
                "split_sha256": result.split_sha256,
                **{f"option.{k}": v for k, v in cell.method.options.items()},
                **{f"note.{k}": str(v)[:500] for k, v in result.notes.items()},
            }  # fmt: skip
            now = int(1000 * time.time())
            metrics = [Metric(k, v, now, 0) for k, v in metrics_of(result, cost).items()]
            self.client.log_batch(run_id, metrics=metrics, params=[Param(k, str(v)) for k, v in params.items()])
            self.client.log_table(run_id, rows_table(result), "rows.json")
            for name in ("program.json", "fit.json"):
                if (folder / name).exists():
                    self.client.log_artifact(run_id, str(folder / name), "program")
            if (folder / "fit" / "best").is_dir():
                self.client.log_artifacts(run_id, str(folder / "fit" / "best"), "weights")
            self.client.set_terminated(run_id, "FINISHED")
            return run_id

    def verdict(self, parent: str, text: str, data: dict[str, Any]) -> None:
        """Write the comparison into the parent run and end it."""
        with _typed():
            self.client.log_text(parent, text, "comparison.txt")
            self.client.log_dict(parent, data, "comparison.json")
            self.client.set_tag(parent, "mlflow.note.content", f"```\n{text}\n```")
        self.finish(parent)

    def finish(self, parent: str) -> None:
        """End the parent run."""
        with _typed():
            self.client.set_terminated(parent, "FINISHED")


def metrics_of(result: Result, cost: Cost) -> dict[str, float]:
    """Return the finite metrics of a cell, times in milliseconds, money in dollars."""
    scores = {r.id: r.score for r in result.rows if r.score is not None}
    clusters = [result.clusters[i] for i in scores] if result.clusters else None
    score = score_interval(list(scores.values()), clusters=clusters)
    found: dict[str, float | None] = {
        "score": score.mean, "score_low": score.low, "score_high": score.high, "n": len(scores),
        "failed": len(result.rows) - len(scores), "fit_seconds": result.fit.seconds, "fit_usd": cost.fit,
        "fit_calls": result.fit.calls, "fit_metric_calls": result.fit.metric_calls,
        "fit_tokens": result.fit.prompt_tokens + result.fit.completion_tokens,
        "usd_per_1k": cost.per_1k_requests, "prompt_tokens": sum(r.prompt_tokens for r in result.rows),
        "completion_tokens": sum(r.completion_tokens for r in result.rows), "serve_seconds": result.serve_seconds,
    }  # fmt: skip
    found |= {f"retrieval_{n}": result.notes.get(n) for n in ("recall", "mrr", "ndcg")}
    found["retrieval_ms"] = result.notes.get("retrieval_ms")
    for q in (0.5, 0.95, 0.99):
        found[f"p{round(100 * q)}_ms"] = 1000 * quantile_interval(result.latency.seconds, q).mean
    return {k: float(v) for k, v in found.items() if v is not None and math.isfinite(v)}


def rows_table(result: Result) -> dict[str, list[Any]]:
    """Return the per-example rows as columns."""
    rows = [asdict(r) | {"output": json.dumps(r.output, ensure_ascii=False, default=str)} for r in result.rows]
    return {k: [r[k] for r in rows] for k in rows[0]} if rows else {}
