"""Search hyper-parameters of sft on val: each trial is judged early, and only the best few are trained to their end.

The rule is that of arXiv 2407.13906: the order of the trials is clear enough after a fifth of the steps. Trials are
proposed by TPE, each by a sampler with a seed of its own, so that a search that was killed goes on with the same
proposals; its storage lies beside the checkpoints.
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState
from scipy.stats import spearmanr

from crossover.finetune.training.checkpoints import TrainingRun
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.options import SEARCHED_RANKS, TrainingOptions, learning_rate
from crossover.finetune.training.render import TrainingText
from crossover.finetune.training.sft_training import train_sft
from crossover.models.device import parameters_of
from crossover.models.errors import UserError
from crossover.models.prompt import engine_of
from crossover.models.usage import Usage

BATCHES, DROPOUTS = (4, 8, 16), (0.0, 0.1)
STRETCH = 4.0
"""Factor up and down by which the learning rate may leave the one that follows the model's size."""
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
        """Refuse numbers that contradict each other."""
        if not (1 <= self.finish <= self.trials and 0 < self.early < 1):
            given = f"trials {self.trials}, early {self.early:g}, finish {self.finish}"
            raise UserError(f"sft search: {given}; write 1 <= finish <= trials and 0 < early < 1")

    @property
    def whole_trainings(self) -> float:
        """Trainings from beginning to end that the search amounts to."""
        return self.trials * self.early + self.finish * (1 - self.early)

    def readings_of_val(self, epochs: int) -> int:
        """Return how often val is read: by each trial before its training, after each epoch, and where it is judged."""
        early = int(self.early * epochs)
        return self.trials * (2 + early) + self.finish * (epochs - early)


def plan_of(given: Mapping[str, Any]) -> Plan:
    """Return the plan of an experiment file's `search`.

    Raises:
        UserError: a key is unknown, a value is no number, or the numbers contradict each other.
    """
    known = asdict(Plan())
    for key, value in given.items():
        if key not in known or isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"sft search: `{key}: {value}` is unknown; use {', '.join(known)} with numbers")
    return Plan(**{k: type(known[k])(v) for k, v in given.items()})


class Trial(NamedTuple):
    """A trial that was judged, and its training if it was finished."""

    params: dict[str, Any]
    """The values that were drawn, by option."""
    early: float
    """Mean on val where it was judged."""
    judged: Usage
    """The cost up to there."""
    run: TrainingRun | None = None

    @property
    def final(self) -> float | None:
        """Return the mean on val of the weights that were kept, or None if the trial was not finished."""
        return None if self.run is None else self.run.kept_score

    @property
    def spent(self) -> Usage:
        """Return the whole cost."""
        return self.judged if self.run is None else self.run.spent


class SearchResult(NamedTuple):
    """The winner of a search, and its trials in the order of their proposal."""

    run: TrainingRun
    discarded: Usage
    """The cost of all other trials."""
    trials: tuple[Trial, ...]
    report: dict[str, Any]
    """Trials with both scores, and how well the early ranking predicted the final one."""


@dataclass(frozen=True)
class _Search:
    """The arguments of one search."""

    options: TrainingOptions
    plan: Plan
    text: TrainingText
    context: FitContext
    folder: Path

    def train(self, number: int, params: Mapping[str, Any], *, pause: float = 0.0) -> TrainingRun:
        """Train a trial from its beginning, or from its newest checkpoint."""
        options = with_params(self.options, params)
        return train_sft(options, self.text, self.context, self.folder_of(number), pause=pause)

    def folder_of(self, number: int) -> Path:
        """Return the folder of a trial's checkpoints."""
        return self.folder / f"trial-{number:03d}"

    def remove_losers(self, trials: Sequence[Trial]) -> None:
        """Remove the checkpoints of trials that cannot be among the finished ones any more."""
        for n in _ranked([t.early for t in trials])[self.plan.finish :]:
            shutil.rmtree(self.folder_of(n), ignore_errors=True)


def search(options: TrainingOptions, plan: Plan, text: TrainingText, context: FitContext, folder: Path) -> SearchResult:
    """Return the best of the finished trials by val; a search that was killed goes on."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'optuna.db'}", study_name="sft", direction="maximize", load_if_exists=True
    )
    for half_drawn in study.get_trials(states=[TrialState.RUNNING]):
        # A kill came before its last value was drawn; it has trained nothing.
        if "dropout" not in half_drawn.params:
            study.tell(half_drawn.number, state=TrialState.FAIL)
    this = _Search(options, plan, text, context, folder)
    while len(trials := _judged(study)) < plan.trials:
        this.remove_losers(trials)
        _judge_one(study, this)
    this.remove_losers(trials)
    for n in _ranked([t.early for t in trials])[: plan.finish]:
        trials[n] = trials[n]._replace(run=this.train(n, trials[n].params))
    return _result(trials, context)


def _judged(study: optuna.Study) -> list[Trial]:
    """Return the trials that were judged."""
    done = study.get_trials(states=[TrialState.COMPLETE])
    return [Trial(t.params, float(t.value or 0.0), Usage(**t.user_attrs["spent"])) for t in done]


def _judge_one(study: optuna.Study, this: _Search) -> None:
    """Train a new trial up to the pause, or one that a kill interrupted, and record its score on val."""
    plan, number = this.plan, len(study.get_trials(states=[TrialState.COMPLETE]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=1000 * this.context.seed + number, n_startup_trials=max(4, plan.trials // 3), multivariate=True
        )
    interrupted = study.get_trials(states=[TrialState.RUNNING])
    trial = optuna.trial.Trial(study, interrupted[0]._trial_id) if interrupted else study.ask()
    run = this.train(number, _suggest(trial, this), pause=plan.early)
    trial.set_user_attr("spent", asdict(run.spent))
    early = run.early_score or 0.0
    study.tell(trial, early)
    shown = ", ".join(f"{k} {v:.3g}" for k, v in sorted(trial.params.items()))
    this.context.budget.progress(f"trial {number + 1}/{plan.trials}: val {early:.3f} at {plan.early:.0%} ({shown})")


def _suggest(trial: optuna.trial.Trial, this: _Search) -> dict[str, Any]:
    """Draw the values of a trial; an interrupted one has them already, and gets the same."""
    engine = engine_of(this.context.lm)
    # The model that serves holds the adapters of earlier cells too.
    parameters = parameters_of(engine.folder, trust_remote_code=engine.trust_remote_code)
    middle = learning_rate(this.options, parameters)
    values: dict[str, Any] = {"lr": trial.suggest_float("lr", middle / STRETCH, middle * STRETCH, log=True)}
    if this.options.adapter != "none":
        values["rank"] = trial.suggest_categorical("rank", SEARCHED_RANKS)
    values["batch_size"] = trial.suggest_categorical("batch_size", BATCHES)
    # Drawn last: `search` takes a trial with this value for one that has all of them.
    values["dropout"] = trial.suggest_categorical("dropout", DROPOUTS)
    return values


def with_params(options: TrainingOptions, params: Mapping[str, Any]) -> TrainingOptions:
    """Return the options with the values of a trial; alpha keeps its ratio to the rank."""
    rank = int(params.get("rank", options.rank))
    alpha = max(1, round(options.alpha * rank / options.rank))
    return replace(options, **{**params, "rank": rank, "alpha": alpha})


def _ranked(scores: Sequence[float]) -> list[int]:
    """Return the positions of the scores, best first; of equal ones the earlier first."""
    return sorted(range(len(scores)), key=lambda n: (-scores[n], n))


def _result(trials: Sequence[Trial], context: FitContext) -> SearchResult:
    """Return the winner of the finished trials, and the report."""
    runs = {n: t.run for n, t in enumerate(trials) if t.run is not None}
    final = [run.kept_score or 0.0 for run in runs.values()]
    best = list(runs)[_ranked(final)[0]]
    report = {
        "trials": [t.params | {"early": t.early, "final": t.final} for t in trials],
        "best": best,
        "finished": len(runs),
        **early_agreement([trials[n].early for n in runs], final),
    }
    context.budget.progress(agreement_words(report))
    discarded = sum((t.spent for n, t in enumerate(trials) if n != best), Usage())
    return SearchResult(runs[best], discarded, tuple(trials), report)


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
    """Say in one sentence how well the early ranking predicted the final one."""
    rho = "undefined, for one of them does not vary" if report["spearman"] is None else f"{report['spearman']:.2f}"
    return (
        f"search: {report['finished']} of {len(report['trials'])} trials finished; Spearman's correlation of their "
        f"early and final score is {rho}, and {report['top_shared']} of the top {report['top']} are the same"
    )
