"""Gates for continuous integration: conditions that end `run` and `report` with exit code 1."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from crossover.eval.analysis.compare import Arm, Comparison
from crossover.eval.analysis.findings import holm
from crossover.eval.analysis.stats import ALPHA, paired_difference
from crossover.eval.store.cells import load_result
from crossover.models.errors import UserError

SCHEMA_VERSION = 1
"""The baseline documents that can be read."""


@dataclass(frozen=True)
class Outcome:
    """What one gate found."""

    gate: str
    """Its name: the flag, and the arm where there are several."""
    task: str
    found: str
    """The numbers it looked at, in one line."""
    passed: bool


@dataclass(frozen=True)
class Gates:
    """What must hold; the defaults ask for nothing."""

    fail_under: float | None = None
    """Least best score of every task."""
    baseline: Path | None = None
    """Document of an earlier `--json`; no arm may have become significantly worse."""
    fail_on_inconclusive: bool = False
    """No verdict may abstain."""


@dataclass(frozen=True)
class Then:
    """An arm as the baseline has it."""

    mean: float
    low: float
    high: float
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Baseline:
    """An earlier comparison."""

    file: Path
    split_sha256: Mapping[str, str]
    arms: Mapping[tuple[str, str], Then]
    """By task and name, those that were scored."""


@dataclass(frozen=True)
class _Change:
    """How an arm's score moved since the baseline."""

    arm: Arm
    then: float
    delta: float
    p: float
    test: str


def apply_gates(gates: Gates, comparison: Comparison, *, store: Path) -> list[Outcome]:
    """Return the outcome of every gate that was asked for.

    Raises:
        UserError: the baseline cannot be read, or was measured on other data.
    """
    outcomes = []
    for v in comparison.verdicts:
        if gates.fail_under is not None:
            best = max((a.score.mean for a in comparison.arms if a.task == v.task and a.score.n), default=0.0)
            found = f"best score {best:.3f} is {'under' if best < gates.fail_under else 'not under'} {gates.fail_under}"
            outcomes.append(Outcome("--fail-under", v.task, found, best >= gates.fail_under))
        if gates.fail_on_inconclusive:
            found = "inconclusive" if v.choose is None else f"chooses {v.choose}, confidence {v.confidence}"
            outcomes.append(Outcome("--fail-on-inconclusive", v.task, found, v.choose is not None))
    if gates.baseline is not None:
        outcomes += _against_baseline(read_baseline(gates.baseline), comparison, store)
    return outcomes


def read_baseline(file: Path) -> Baseline:
    """Return the baseline of a file.

    Raises:
        UserError: it is missing, or not what `--json` writes.
    """
    remedy = "give a file that `crossover run --json` or `crossover report -o FILE.json` wrote"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if (version := document["schema_version"]) != SCHEMA_VERSION:
            raise UserError(f"--baseline {file}: schema_version {version!r} is not {SCHEMA_VERSION}; {remedy}")
        arms = {
            (str(a["task"]), str(a["name"])): Then(
                mean=float(a["score"]["mean"]),
                low=float(a["score"]["low"]),
                high=float(a["score"]["high"]),
                cells=tuple(map(str, a["cells"])),
            )
            for a in document["arms"]
            if a["score"]["mean"] is not None
        }
        return Baseline(file, {str(k): str(v) for k, v in document["split_sha256"].items()}, arms)
    except FileNotFoundError:
        raise UserError(f"--baseline {file}: no such file; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"--baseline {file}: not a comparison ({type(e).__name__}: {e}); {remedy}") from None


def _against_baseline(baseline: Baseline, comparison: Comparison, store: Path) -> list[Outcome]:
    """Return an outcome for each arm that the baseline holds as well, p adjusted by Holm over them."""
    for task, split in comparison.split_sha256.items():
        if (then := baseline.split_sha256.get(task, split)) != split:
            what = f"--baseline {baseline.file}: {task} had split {then[:12]}, now {split[:12]}"
            raise UserError(f"{what}; scores of different examples do not compare, write a new baseline with --json")
    shared = [(a, baseline.arms[a.task, a.name]) for a in comparison.arms if (a.task, a.name) in baseline.arms]
    changes = [_change(arm, then, store) for arm, then in shared if arm.score.n]
    if not changes:
        raise UserError(f"--baseline {baseline.file}: no arm of this comparison; write a new baseline with --json")
    adjusted = holm([c.p for c in changes])
    return [
        Outcome(
            f"--baseline {c.arm.name}",
            c.arm.task,
            f"{c.arm.name} scored {c.then:.3f} in the baseline and {c.arm.score.mean:.3f} now "
            f"({c.delta:+.3f}, p = {p:.2g} after Holm, {c.test})",
            not (c.delta < 0 and p < ALPHA),
        )
        for c, p in zip(changes, adjusted, strict=True)
    ]


def _change(arm: Arm, then: Then, store: Path) -> _Change:
    """Return how an arm moved: paired by example when the store still has its old rows, else from the intervals."""
    old = _scores(store, then.cells)
    ids = [i for i in arm.scores if i in old]
    if ids:
        d = paired_difference({i: arm.scores[i] for i in ids}, {i: old[i] for i in ids}, clusters=arm.clusters)
        return _Change(arm, then.mean, d.delta, d.p, "paired by example")
    normal, delta = NormalDist(), arm.score.mean - then.mean
    widths = math.hypot(arm.score.high - arm.score.low, then.high - then.low)
    error = widths / (2 * normal.inv_cdf(1 - ALPHA / 2))
    p = 2 * (1 - normal.cdf(abs(delta) / error)) if error else float(delta == 0)
    return _Change(arm, then.mean, delta, p, "from the two intervals")


def _scores(store: Path, cells: Sequence[str]) -> dict[str, float]:
    """Return example id to the mean score over the cells, empty unless the store holds every one of them."""
    results = [load_result(store, str(key)) for key in cells]
    scores: dict[str, list[float]] = {}
    for result in results:
        if result is None:
            return {}
        for row in result.rows:
            if row.score is not None:
                scores.setdefault(row.id, []).append(row.score)
    return {i: sum(s) / len(s) for i, s in scores.items()}
