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
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy.stats import spearmanr

from finetune.selection import TrainingRun
from finetune.training import Ground, train_model
from programs.task import Spent, UserError

if TYPE_CHECKING:
    from finetune.render import TrainingText
    from finetune.sft import Sft

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
class Found:
    """What a search came to."""

    options: "Sft"
    """The winner's."""
    run: TrainingRun
    discarded: Spent
    """What every other trial cost."""
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
    tried: list[tuple[Sft, float]] = []
    while True:
        done = study.get_trials(states=[TrialState.COMPLETE])
        tried = [(_options(options, t.params), float(t.value or 0.0)) for t in done]
        _forget_losers(folder, tried, plan)
        if len(tried) >= plan.trials:
            break
        _try_one(study, options, text, ground, folder, plan)
    ranked = _ranked([score for _, score in tried])[: plan.finish]
    runs = {n: train_model(tried[n][0], text, ground, folder=_place(folder, n)) for n in ranked}
    return _found(tried, runs, study.get_trials(states=[TrialState.COMPLETE]), ground)


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
    trial.set_user_attr("tokens", run.tokens)
    trial.set_user_attr("seconds", run.seconds)
    trial.set_user_attr("selection", asdict(run.selection))
    early = run.early_score or 0.0
    study.tell(trial, early)
    shown = ", ".join(f"{k} {v:.3g}" for k, v in sorted(trial.params.items()))
    ground.budget.progress(f"trial {number + 1}/{plan.trials}: val {early:.3f} at {plan.early:.0%} ({shown})")


def _suggest(trial: Trial, options: "Sft", ground: Ground) -> dict[str, Any]:
    """Draw the values of a trial; one that was drawn before keeps them."""
    from finetune.sft import learning_rate
    from models.prompt import engine_of

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


def _forget_losers(folder: Path, tried: Sequence[tuple["Sft", float]], plan: Plan) -> None:
    """Remove the checkpoints of trials that will not be finished: none of them can rise again."""
    for n in _ranked([score for _, score in tried])[plan.finish :]:
        shutil.rmtree(_place(folder, n), ignore_errors=True)


def _found(
    tried: Sequence[tuple["Sft", float]], runs: Mapping[int, TrainingRun], trials: Sequence[FrozenTrial], ground: Ground
) -> Found:
    """Return the winner of the finished trials, and the report."""
    final = {n: max(run.val_scores[1:]) for n, run in runs.items()}
    best = max(final, key=lambda n: (final[n], -n))
    discarded = Spent()
    for n, trial in enumerate(trials):
        kept = trial.user_attrs
        if n in runs:
            cost = Spent(train_tokens=runs[n].tokens, seconds=runs[n].seconds) + runs[n].selection
        else:
            cost = Spent(train_tokens=kept["tokens"], seconds=kept["seconds"]) + Spent(**kept["selection"])
        discarded = discarded if n == best else discarded + cost
    order = sorted(runs)
    agreement = early_agreement([tried[n][1] for n in order], [final[n] for n in order])
    report = {
        "trials": [t.params | {"early": tried[n][1], "final": final.get(n)} for n, t in enumerate(trials)],
        "best": best,
        "finished": len(runs),
        **agreement,
    }
    ground.budget.progress(agreement_words(report))
    return Found(tried[best][0], runs[best], discarded, report)


def early_agreement(early: Sequence[float], final: Sequence[float]) -> dict[str, Any]:
    """Return Spearman's correlation of both scores, None where one does not vary, and how many of the top are shared.

    The top is five, or half of the trials where there are fewer than ten: of three, three are shared always.
    """
    varies = len(set(early)) > 1 and len(set(final)) > 1
    top = min(TOP, max(1, len(early) // 2))
    shared = len({*_ranked(early)[:top]} & {*_ranked(final)[:top]})
    return {"spearman": float(spearmanr(early, final).statistic) if varies else None, "top": top, "top_shared": shared}


def agreement_words(report: Mapping[str, Any]) -> str:
    """Return in one sentence how well the early ranking told the final one."""
    rho = "undefined, for one of them does not vary" if report["spearman"] is None else f"{report['spearman']:.2f}"
    return (
        f"search: {report['finished']} of {len(report['trials'])} trials finished; Spearman's correlation of their "
        f"early and final score is {rho}, and {report['top_shared']} of the top {report['top']} are the same"
    )
