"""Search hyper-parameters of sft on val: each trial is judged early, and only the best few are trained to their end.

The rule is that of arXiv 2407.13906: a fifth of the steps tells the order of the trials well enough. Trials are
proposed by TPE, each by a sampler with a seed of its own, so that a search that was killed proposes what it would have
proposed; its storage lies beside the checkpoints.
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import Trial, TrialState
from scipy.stats import spearmanr

from crossover.finetune.training.selection import TrainingRun
from crossover.finetune.training.train import Ground, train_model
from crossover.models.errors import UserError
from crossover.models.usage import Usage

if TYPE_CHECKING:
    from crossover.finetune.sft import Sft
    from crossover.finetune.training.render import TrainingText

RANKS, BATCHES, DROPOUTS = (4, 8, 16, 32, 64), (4, 8, 16), (0.0, 0.1)
STRETCH = 4.0
"""Times by which the learning rate may leave the one that follows the model's size."""
TOP = 5
"""Places of both rankings that are compared."""


@dataclass(frozen=True)
class Plan:
    """How long to search."""

    trials: int = 16
    early: float = 0.2
    """Share of the steps after which a trial is judged."""
    finish: int = 3
    """Trials that are trained to their end."""

    def __post_init__(self) -> None:
        """Refuse a plan that cannot be followed."""
        if not (1 <= self.finish <= self.trials and 0 < self.early < 1):
            given = f"trials {self.trials}, early {self.early:g}, finish {self.finish}"
            raise UserError(f"sft search: {given}; write 1 <= finish <= trials and 0 < early < 1")


def plan_of(given: Mapping[str, Any]) -> Plan:
    """Return the plan that an experiment file gives.

    Raises:
        UserError: a key or a value is not one of a plan.
    """
    known = asdict(Plan())
    for key, value in given.items():
        if key not in known or isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"sft search: `{key}: {value}` is unknown; use {', '.join(known)} with numbers")
    return Plan(**{k: type(known[k])(v) for k, v in given.items()})


@dataclass(frozen=True)
class Tried:
    """One trial."""

    params: dict[str, Any]
    """The values that were drawn, by option."""
    early: float
    """Mean on val where it was judged."""
    judged: Usage
    """What it cost up to there."""
    run: TrainingRun | None = None
    """What it came to; None for one that was not finished."""

    @property
    def final(self) -> float | None:
        """Return the best mean on val after an epoch."""
        return None if self.run is None else max(self.run.val_scores[1:])

    @property
    def spent(self) -> Usage:
        """Return what it cost in all."""
        return self.judged if self.run is None else self.run.spent


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    run: TrainingRun
    """The winner's."""
    discarded: Usage
    """What every other trial cost."""
    trials: tuple[Tried, ...]
    """In the order in which they were proposed."""
    report: dict[str, Any]
    """Trials with both scores, and how well the early ranking told the final one."""


def search(options: "Sft", text: "TrainingText", ground: Ground, folder: Path) -> Found:
    """Return the best of the finished trials by val; a search that was killed goes on."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = plan_of(options.search or {})
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'optuna.db'}", study_name="sft", direction="maximize", load_if_exists=True
    )
    _drop_half_asked(study)
    while len(tried := _tried(study)) < plan.trials:
        _forget_losers(folder, tried, plan)
        _try_one(study, options, text, ground, folder, plan)
    _forget_losers(folder, tried, plan)
    for n in _ranked([t.early for t in tried])[: plan.finish]:
        run = train_model(_options(options, tried[n].params), text, ground, folder=_place(folder, n))
        tried[n] = replace(tried[n], run=run)
    return _found(tried, ground)


def _tried(study: optuna.Study) -> list[Tried]:
    """Return the trials that were judged."""
    done = study.get_trials(states=[TrialState.COMPLETE])
    return [Tried(t.params, float(t.value or 0.0), Usage(**t.user_attrs["spent"])) for t in done]


def _drop_half_asked(study: optuna.Study) -> None:
    """End trials that a kill left before all their values were drawn; they trained nothing."""
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        if "dropout" not in trial.params:
            study.tell(trial.number, state=TrialState.FAIL)


def _try_one(
    study: optuna.Study, options: "Sft", text: "TrainingText", ground: Ground, folder: Path, plan: Plan
) -> None:
    """Ask for one trial, or take up the one that a kill left, and judge it early."""
    number = len(study.get_trials(states=[TrialState.COMPLETE]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=1000 * ground.seed + number, n_startup_trials=max(4, plan.trials // 3), multivariate=True
        )
    left = study.get_trials(states=[TrialState.RUNNING])
    trial = Trial(study, left[0]._trial_id) if left else study.ask()
    chosen = _options(options, _suggest(trial, options, ground))
    run = train_model(chosen, text, ground, folder=_place(folder, number), pause=plan.early)
    trial.set_user_attr("spent", asdict(run.spent))
    early = run.early_score or 0.0
    study.tell(trial, early)
    shown = ", ".join(f"{k} {v:.3g}" for k, v in sorted(trial.params.items()))
    ground.budget.progress(f"trial {number + 1}/{plan.trials}: val {early:.3f} at {plan.early:.0%} ({shown})")


def _suggest(trial: Trial, options: "Sft", ground: Ground) -> dict[str, Any]:
    """Draw the values of a trial; one that was drawn before keeps them."""
    from crossover.finetune.sft import learning_rate
    from crossover.models.prompt import engine_of

    middle = learning_rate(options, engine_of(ground.lm).model.num_parameters())
    values: dict[str, Any] = {"lr": trial.suggest_float("lr", middle / STRETCH, middle * STRETCH, log=True)}
    if options.adapter != "none":
        values["rank"] = trial.suggest_categorical("rank", RANKS)
    values["batch_size"] = trial.suggest_categorical("batch_size", BATCHES)
    # The last one drawn: a trial that has it has all.
    values["dropout"] = trial.suggest_categorical("dropout", DROPOUTS)
    return values


def _options(options: "Sft", values: Mapping[str, Any]) -> "Sft":
    """Return the options of one trial; alpha keeps its ratio to the rank."""
    rank = int(values.get("rank", options.rank))
    alpha = max(1, round(options.alpha * rank / options.rank))
    rest = {k: v for k, v in values.items() if k != "rank"}
    return replace(options, **rest, rank=rank, alpha=alpha, search=None)


def _place(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:03d}"


def _ranked(scores: Sequence[float]) -> list[int]:
    """Return positions, best first; of equals the earlier."""
    return sorted(range(len(scores)), key=lambda n: (-scores[n], n))


def _forget_losers(folder: Path, tried: Sequence[Tried], plan: Plan) -> None:
    """Remove the checkpoints of trials that will not be finished: none of them can rise again."""
    for n in _ranked([t.early for t in tried])[plan.finish :]:
        shutil.rmtree(_place(folder, n), ignore_errors=True)


def _found(tried: Sequence[Tried], ground: Ground) -> Found:
    """Return the winner of the finished trials, and the report."""
    runs = {n: t.run for n, t in enumerate(tried) if t.run is not None}
    final = [max(run.val_scores[1:]) for run in runs.values()]
    best = list(runs)[_ranked(final)[0]]
    report = {
        "trials": [t.params | {"early": t.early, "final": t.final} for t in tried],
        "best": best,
        "finished": len(runs),
        **early_agreement([tried[n].early for n in runs], final),
    }
    ground.budget.progress(agreement_words(report))
    discarded = sum((t.spent for n, t in enumerate(tried) if n != best), Usage())
    return Found(runs[best], discarded, tuple(tried), report)


def early_agreement(early: Sequence[float], final: Sequence[float]) -> dict[str, Any]:
    """Return Spearman's correlation of both scores, None where one does not vary, and how many of the top are shared.

    The top is five, or half of the trials where there are fewer than ten: of three, three are shared always.
    """
    varies = len(set(early)) > 1 and len(set(final)) > 1
    top = min(TOP, max(1, len(early) // 2))
    return {
        "spearman": float(spearmanr(early, final).statistic) if varies else None,
        "top": top,
        "top_shared": top_shared(early, final, top),
    }


def top_shared(early: Sequence[float], final: Sequence[float], top: int) -> int:
    """Return how many of the best trials of one ranking are among as many of the best of the other."""
    return len({*_ranked(early)[:top]} & {*_ranked(final)[:top]})


def agreement_words(report: Mapping[str, Any]) -> str:
    """Return in one sentence how well the early ranking told the final one."""
    rho = "undefined, for one of them does not vary" if report["spearman"] is None else f"{report['spearman']:.2f}"
    return (
        f"search: {report['finished']} of {len(report['trials'])} trials finished; Spearman's correlation of their "
        f"early and final score is {rho}, and {report['top_shared']} of the top {report['top']} are the same"
    )
