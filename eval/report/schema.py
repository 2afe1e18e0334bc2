"""Write a comparison as the JSON document of `run --json` and `report -o FILE.json`, schema version 2."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.contrast import Contrast
from crossover.eval.analysis.latency import LatencySummary
from crossover.eval.analysis.stats import Estimate, mean_interval
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment.spec import METHODOLOGY_VERSION
from crossover.eval.store.document import SCHEMA_VERSION


def _finite(value: float | None) -> float | None:
    """Return the value rounded to six digits, or None where JSON has no number for it."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def arm_json(arm: Arm) -> dict[str, Any]:
    """Return one arm with its seeds pooled, and their cells and MLflow runs listed."""
    t, human, (cheap, dear) = arm.tokens, arm.human, _price_range(arm)
    return {
        "id": arm.id,
        "name": arm.name,
        "task": arm.task,
        "model": arm.model,
        "method": arm.spec.name,
        "options": arm.spec.changed_options,
        "kind": arm.spec.kind,
        "family": arm.family,
        "train_size": arm.train_size,
        "knowledge": arm.knowledge,
        "seeds": list(arm.seeds),
        "cells": list(arm.cells),
        "prompt_format": arm.prompt_format,
        "val": _finite(arm.val),
        "score": {**estimate_json(arm.score), "unparsed": arm.unparsed, "failed": arm.failed},
        "endings": dict(arm.endings),
        "fields": {name: estimate_json(e) for name, e in arm.fields.items()},
        "latency_ms": _latency_json(arm.latency),
        "tokens": {"prompt": t.prompt_tokens, "cached": t.cached_tokens, "completion": t.completion_tokens},
        "tokens_estimated": arm.tokens_estimated,
        "cost_usd": {
            "fit": _finite(arm.cost.fit),
            "per_1k_requests": _finite(arm.cost.per_1k_requests),
            "per_1k_low": _finite(cheap),
            "per_1k_high": _finite(dear),
            "per_1k_basis": arm.cost.basis,
            "per_1k_alone": _finite(arm.cost.per_1k_alone),
            "paid": _finite(arm.cost.paid),
            "per_1k_correct": _finite(arm.cost.per_1k_correct(arm.score.mean)),
            "judge": _finite(arm.cost.judge),
            "hosting_per_month": _finite(arm.cost.hosting_per_month),
        },
        "retrieval": arm.retrieval,
        "retrieval_recall": None if arm.ranking is None else arm.ranking.recall,
        "secondary": {name: _finite(value) for name, value in arm.secondary.items()},
        "labels": {y: asdict(x) | {"score": _finite(x.score)} for y, x in arm.labels.items()},
        "retrieval_quality": None if arm.ranking is None else asdict(arm.ranking),
        "retrieval_ms": _finite(arm.retrieval_ms),
        "price_source": arm.price_source,
        "score_hit": None if arm.hit is None else estimate_json(arm.hit),
        "score_miss": None if arm.miss is None else estimate_json(arm.miss),
        "human": None
        if human is None
        else {
            "n": human.n,
            "corrected": estimate_json(human.corrected),
            "kappa": {name: _finite(k) for name, k in human.kappa.items()},
        },
        "dropped": None if arm.dropped is None else {"after": arm.dropped[0], "of": arm.dropped[1]},
        "warnings": list(arm.warnings),
        "integrity": list(arm.integrity),
        "mlflow_run_id": arm.mlflow_run_ids[0],
        "mlflow_run_ids": list(arm.mlflow_run_ids),
    }


def _price_range(arm: Arm) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of the price of 1,000 requests, over requests, seeds and blocks.

    None without a price, and for a model that runs here and was served once, whose speed at another time is not known.
    """
    price, each = arm.cost.per_1k_requests, arm.request_usd
    if price is None or not each or arm.cost.measured_once:
        return None, None
    over, spread = mean_interval([1000 * usd for usd in each.values()]), arm.cost.spread
    return max(0.0, price - math.hypot(over.mean - over.low, spread)), price + math.hypot(over.high - over.mean, spread)


def _latency_json(ms: LatencySummary) -> dict[str, Any]:
    def mean(e: Estimate | None) -> float | None:
        return None if e is None else _finite(e.mean)

    return {
        "p50": mean(ms.p50),
        "p95": mean(ms.p95),
        "p99": mean(ms.p99),
        "p95_low": _finite(ms.p95.low),
        "p95_high": _finite(ms.p95.high),
        "n": ms.n,
        "concurrency": ms.concurrency,
        "first_token_p50": mean(ms.first_token),
        "cold_p50": mean(ms.cold),
        "cold_first_token_p50": mean(ms.cold_first_token),
    }


def estimate_json(e: Estimate) -> dict[str, Any]:
    """Return a mean with its interval and the number behind it; an end that is not known is null."""
    return {"mean": _finite(e.mean), "low": _finite(e.low), "high": _finite(e.high), "n": e.n}


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the whole comparison; arms are named by their ids."""
    ids = {(a.task, a.name): a.id for a in comparison.arms}
    return {
        "schema_version": SCHEMA_VERSION,
        "methodology_version": METHODOLOGY_VERSION,
        "experiment": comparison.experiment,
        "complete": comparison.partial is None,
        "partial": None if comparison.partial is None else asdict(comparison.partial),
        "split_sha256": dict(comparison.split_sha256),
        "compare": comparison.unit,
        "arms": [arm_json(a) for a in comparison.arms],
        "contrasts": [_contrast_json(c, ids) for c in comparison.contrasts],
        "learning": {task: asdict(learning) for task, learning in comparison.learning.items()},
        "failures": list(comparison.failures),
        "verdict": [_verdict_json(v, comparison, ids) for v in comparison.verdicts],
    }


def _contrast_json(c: Contrast, ids: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    return {
        "task": c.task,
        "a": ids[c.task, c.a],
        "b": ids[c.task, c.b],
        "delta": _finite(c.difference.delta),
        "low": _finite(c.difference.low),
        "high": _finite(c.difference.high),
        "p": _finite(c.difference.p),
        "p_adjusted": _finite(c.p_holm),
        "detectable": _finite(c.detectable),
        "verdict": c.finding,
    }


def _verdict_json(v: Verdict, comparison: Comparison, ids: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    b = v.break_even
    return {
        "task": v.task,
        "choose": None if v.choose is None else ids[v.task, v.choose],
        "because": v.because,
        "confidence": v.confidence,
        "score": None if v.score is None else {k: _finite(x) for k, x in asdict(v.score).items()},
        "compared": [ids[v.task, name] for name in comparison.compared[v.task]],
        "ties": [ids[v.task, name] for name in v.ties],
        "flips": list(v.flips),
        "cautions": list(comparison.cautions.get(v.task, ())),
        "break_even": None
        if b is None
        else {
            "a": ids[v.task, b.run],
            "b": ids[v.task, b.start],
            "requests": _finite(b.value),
            "low": _finite(b.low),
            "high": _finite(b.high),
        },
    }
