"""How well a fifth of the training tells its end: `python benchmarks/early_search.py FOLDER [--trials 16]`.

FOLDER holds train.jsonl, dev.jsonl, test.jsonl (id, text, label), as Banking77's. The search of `sft` proposes trials
by TPE, judges each at a share of its steps and here finishes all of them, which it does only for the best few
otherwise; both rankings are of the score on val. Printed are the correlation of the rankings, how many of the best they
share, and what stopping early would have saved and lost.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import dspy
import numpy as np
from scipy.stats import spearmanr

from crossover.eval.experiment.splits import sample, train_pool
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.hyperparameters import Plan, Trial, search, top_shared
from crossover.finetune.training.options import TrainingOptions
from crossover.finetune.training.render import render_training_text
from crossover.finetune.training.targets import gold_calls
from crossover.models.load import load_model
from crossover.models.spec import ModelSpec
from crossover.programs.data import load_task
from crossover.programs.spec import TaskSpec
from crossover.programs.task import Budget

FIELDS = {"id": "id", "text": "input", "label": "output"}
FILES = {"train": "train.jsonl", "val": "dev.jsonl", "test": "test.jsonl"}
TOPS = (1, 3, 5)
SAMPLES = 2000


def finished_trials(flags: argparse.Namespace, scratch: Path) -> tuple[str, tuple[Trial, ...]]:
    """Return what was searched, in words, and its trials, all of them trained to their end."""
    data = {split: str(flags.folder.resolve() / name) for split, name in FILES.items()}
    task = load_task(TaskSpec(flags.folder.resolve().name, "classify", data, FIELDS, metric="label_accuracy"))
    train, val = train_pool(task, flags.rows, flags.seed), sample(task.val, flags.val)
    # Every answer a label, as an experiment on labels would have it.
    model = load_model(ModelSpec("smollm2", max_tokens=24, decode="labels"))
    plan = Plan(trials=flags.trials, early=flags.early, finish=flags.trials)
    options = TrainingOptions(adapter=flags.adapter, epochs=flags.epochs)
    with dspy.context(lm=model.lm, adapter=model.prompt_format):
        program = task.program()
        text = render_training_text(program, gold_calls(program, train), model.lm)
        budget = Budget(workdir=scratch, progress=lambda line: print(line, file=sys.stderr))
        context = FitContext(program, val, task.metric, model.lm, flags.seed, budget)
        trials = search(options, plan, text, context, scratch).trials
    words = f"{task.name}: {len(train):,} train rows, {len(val)} of val, adapter {flags.adapter}, {flags.epochs} epochs"
    return f"{words}, seed {flags.seed}", trials


def interval(early: Sequence[float], final: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of Spearman's correlation, from resampled trials in which both scores vary."""
    rng, pairs = np.random.default_rng(0), np.column_stack([early, final])
    drawn = (pairs[rng.integers(0, len(pairs), len(pairs))] for _ in range(SAMPLES))
    found = [spearmanr(*d.T).statistic for d in drawn if (np.ptp(d, axis=0) > 0).all()]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def report(trials: Sequence[Trial], early_share: float, usual: int) -> list[str]:
    """Return the trials, the agreement of both rankings, and what finishing the best `usual` alone comes to."""
    early, final = [t.early for t in trials], [t.final or 0.0 for t in trials]
    lines = [f"{'trial':>5}  {'lr':>8}  {'rank':>4}  {'batch':>5}  {'dropout':>7}  {'early':>6}  {'final':>6}  seconds"]
    for n, t in enumerate(trials, 1):
        p = t.params
        lines.append(
            f"{n:>5}  {p['lr']:>8.2g}  {p.get('rank', '-'):>4}  {p['batch_size']:>5}  {p['dropout']:>7g}  "
            f"{t.early:>6.3f}  {t.final:>6.3f}  {t.judged.seconds:.0f} of {t.spent.seconds:.0f}"
        )
    rho = "undefined, for one ranking does not vary"
    if len(set(early)) > 1 and len(set(final)) > 1:
        low, high = interval(early, final)
        rho = f"{spearmanr(early, final).statistic:.2f} [{low:.2f}, {high:.2f}]"
    lines += ["", f"Spearman's correlation of the scores at {early_share:.0%} of the steps and at the end: {rho}"]
    lines += [f"top {k}: {top_shared(early, final, k)} of {k} the same" for k in TOPS if k < len(trials)]
    kept = set(sorted(range(len(trials)), key=lambda n: (-early[n], n))[:usual])
    whole = sum(t.spent.seconds for t in trials)
    short = sum((t.spent if n in kept else t.judged).seconds for n, t in enumerate(trials))
    lines.append(
        f"finishing the best {usual} alone: {short:.0f} of {whole:.0f} training seconds, {1 - short / whole:.0%} less; "
        f"the best of them ends at {max(final[n] for n in kept):.3f}, the best of all at {max(final):.3f}"
    )
    return lines


def main() -> int:
    """Search, finish every trial and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--early", type=float, default=0.2, help="share of the steps after which a trial is judged")
    parser.add_argument("--rows", type=int, default=2000, help="train rows")
    parser.add_argument("--val", type=int, default=200, help="val examples that both rankings are by")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--adapter", default="none", help="lora, dora, or none for full weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="folder to keep the search in, to go on with if it is stopped")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words, trials = finished_trials(flags, flags.scratch or Path(folder))
    print(
        "\n".join([f"{words}, {len(trials)} trials", "", *report(trials, flags.early, min(Plan().finish, len(trials)))])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
