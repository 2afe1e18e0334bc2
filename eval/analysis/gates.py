"""Apply gates for continuous integration: conditions that end `run` and `report` with exit code 1."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.analysis.contrast import holm
from crossover.eval.analysis.exclusion import eligible
from crossover.eval.analysis.seeds import mean_scores
from crossover.eval.analysis.stats import ALPHA, paired_difference
from crossover.eval.experiment.spec import Needs
from crossover.eval.store.cells import load_result
from crossover.eval.store.document import check_version
from crossover.eval.store.recorded import read_recorded
from crossover.models.errors import UserError


class Outcome(NamedTuple):
    """Result of one gate on one task."""

    gate: str
    """The flag, and for a baseline the arm."""
    task: str
    detail: str
    """The numbers that decided, in one line."""
    passed: bool


@dataclass(frozen=True)
class Gates:
    """Conditions that must hold; the defaults require nothing."""

    fail_under: float | None = None
    """Least score that the best arm of every task must reach."""
    baseline: "Baseline | None" = None
    """An earlier comparison; no arm may have become significantly worse since."""
    fail_on_inconclusive: bool = False
    """Whether an abstention fails."""


class BaselineArm(NamedTuple):
    """Score and cells of an arm in the baseline."""

    mean: float
    low: float
    high: float
    cells: tuple[str, ...]


class Baseline(NamedTuple):
    """An earlier comparison."""

    name: str
    """The file that it was read from, or the name of its run."""
    split_sha256: Mapping[str, str]
    arms: Mapping[tuple[str, str], BaselineArm]
    """Scored arms by task and name."""


class _Change(NamedTuple):
    """Change of the score of an arm since the baseline."""

    arm: Arm
    before: float
    delta: float
    p: float
    test: str


def apply_gates(gates: Gates, comparison: Comparison, *, store: Path) -> list[Outcome]:
    """Return the outcome of every gate that was asked for.

    Raises:
        UserError: the baseline has none of the arms.
    """
    outcomes = []
    for v in comparison.verdicts:
        if gates.fail_under is not None:
            sound = eligible([a for a in comparison.arms if a.task == v.task and not a.dropped], Needs())
            best = sound[0].score.mean if sound else 0.0
            detail = (
                f"best score {best:.3f} is {'under' if best < gates.fail_under else 'not under'} {gates.fail_under}"
            )
            outcomes.append(Outcome("--fail-under", v.task, detail, best >= gates.fail_under))
        if gates.fail_on_inconclusive:
            detail = "inconclusive" if v.choose is None else f"chooses {v.choose}, confidence {v.confidence}"
            outcomes.append(Outcome("--fail-on-inconclusive", v.task, detail, v.choose is not None))
    if gates.baseline is not None:
        outcomes += _against_baseline(gates.baseline, comparison, store)
    return outcomes


def read_baseline(file: Path) -> Baseline:
    """Read a baseline from the JSON of an earlier comparison.

    Raises:
        UserError: the file is missing, or not a document that `--json` writes.
    """
    remedy = "give a file that `crossover run --json` or `crossover report -o FILE.json` wrote"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        check_version(document, f"--baseline {file}", remedy)
        arms = {
            (str(a["task"]), str(a["name"])): BaselineArm(
                mean=float(a["score"]["mean"]),
                low=float(a["score"]["low"]),
                high=float(a["score"]["high"]),
                cells=tuple(map(str, a["cells"])),
            )
            for a in document["arms"]
            if a["score"]["mean"] is not None
        }
        return Baseline(str(file), {str(k): str(v) for k, v in document["split_sha256"].items()}, arms)
    except FileNotFoundError:
        raise UserError(f"--baseline {file}: no such file; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"--baseline {file}: not a comparison ({type(e).__name__}: {e}); {remedy}") from None


def recorded_baseline(name: str, store: Path) -> Baseline:
    """Return the last run of an experiment as a baseline, as the store holds it now.

    Raises:
        UserError: no run has that name, or a cell of it is gone.
    """
    try:
        run = read_recorded(store, name)
    except UserError as e:
        raise UserError(f"--baseline {name}: {e}") from None
    found = compare(run.results, needs=run.needs, prices=run.prices, experiment=name, unit=run.compare)
    scores = {(a.task, a.name): (a.score, tuple(a.cells)) for a in found.arms if a.score.n}
    arms = {key: BaselineArm(score.mean, score.low, score.high, cells) for key, (score, cells) in scores.items()}
    return Baseline(name, found.split_sha256, arms)


def _against_baseline(baseline: Baseline, comparison: Comparison, store: Path) -> list[Outcome]:
    """Return an outcome for each arm that the baseline has too, with p adjusted over all of them."""
    for task, split in comparison.split_sha256.items():
        if (old := baseline.split_sha256.get(task, split)) != split:
            # No error: by now everything was measured, and has its files to be written.
            what = f"the split was {old[:12]} and is {split[:12]}; scores of different examples do not compare"
            return [Outcome(f"--baseline {baseline.name}", task, f"{what}, write a new baseline with --json", False)]
    shared = [(a, baseline.arms[a.task, a.name]) for a in comparison.arms if (a.task, a.name) in baseline.arms]
    changes = [_change(arm, before, store) for arm, before in shared if arm.score.n]
    if not changes:
        raise UserError(f"--baseline {baseline.name}: no arm of this comparison; write a new baseline with --json")
    adjusted = holm([c.p for c in changes])
    return [
        Outcome(
            f"--baseline {c.arm.name}",
            c.arm.task,
            f"{c.arm.name} scored {c.before:.3f} in the baseline and {c.arm.score.mean:.3f} now "
            f"({c.delta:+.3f}, p = {p:.2g} after Holm, {c.test})",
            not (c.delta < 0 and p < ALPHA),
        )
        for c, p in zip(changes, adjusted, strict=True)
    ]


def _change(arm: Arm, before: BaselineArm, store: Path) -> _Change:
    """Test the change of an arm, paired by example when the store still has its old rows, else by the intervals."""
    old = _old_scores(store, before.cells)
    if old and not math.isclose(sum(old.values()) / len(old), before.mean, abs_tol=1e-5):
        old = {}  # the store holds what the same cells came to when they were measured again
    ids = [i for i in arm.scores if i in old]
    if ids:
        d = paired_difference({i: arm.scores[i] for i in ids}, {i: old[i] for i in ids}, clusters=arm.clusters)
        return _Change(arm, before.mean, d.delta, d.p, "paired by example")
    normal, delta = NormalDist(), arm.score.mean - before.mean
    widths = math.hypot(arm.score.high - arm.score.low, before.high - before.low)
    error = widths / (2 * normal.inv_cdf(1 - ALPHA / 2))
    p = 2 * (1 - normal.cdf(abs(delta) / error)) if error else float(delta == 0)
    return _Change(arm, before.mean, delta, p, "from the two intervals")


def _old_scores(store: Path, cells: Sequence[str]) -> Mapping[str, float]:
    """Return example id to the mean score over the cells; empty unless the store holds every one of them."""
    results = [load_result(store, key) for key in cells]
    if any(r is None for r in results):
        return {}
    return mean_scores([{row.id: row.score for row in r.rows if row.score is not None} for r in results if r])
