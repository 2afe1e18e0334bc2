"""The verbs `compile` and `finetune`: one stage of a run; heavy packages are imported when it runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.options import (
    EXIT_CANNOT_RUN,
    EXIT_PARTIAL,
    CellFlags,
    LimitFlags,
    experiment_of,
    experiment_options,
    limit_options,
    store_option,
)
from crossover.eval.cli.output import echo
from crossover.eval.run.interrupt import EXIT_INTERRUPTED, INTERRUPTED

if TYPE_CHECKING:
    from crossover.eval.experiment.spec import Kind


def _stage(name: str, kind: "Kind", text: str) -> click.Command:
    """Return the verb that fits the cells of one kind."""

    @click.command(name, help=text)
    @experiment_options
    @click.option("-j", "--threads", type=click.IntRange(1), default=32, help="Concurrent calls.")
    @limit_options
    @click.option("--no-progress", is_flag=True, help="No progress.")
    @store_option
    def verb(cells: CellFlags, limits: LimitFlags, store: Path, threads: int, no_progress: bool) -> int:
        experiment = experiment_of(cells, limits)
        from crossover.eval.run.fitting import fit_experiment, summary_lines
        from crossover.eval.run.progress import Progress

        progress = Progress(stream=sys.stderr, enabled=not no_progress)
        try:
            summary = fit_experiment(experiment, kind, store=store, threads=threads, progress=progress)
        finally:
            progress.close()
        for line in summary_lines(summary):
            echo(line)
        for line in summary.failures:
            echo(f"error: {line}", err=True)
        if summary.missing:
            left = f"{summary.missing} cells are left for the next time"
            echo(f"warning: stopped by {summary.stopped}; {left}", err=True)
        if summary.stopped == INTERRUPTED:
            return EXIT_INTERRUPTED
        if not summary.failures and not summary.missing:
            return 0
        return EXIT_PARTIAL if summary.fitted or summary.finished else EXIT_CANNOT_RUN

    return verb


compile_ = _stage(
    "compile",
    "context",
    """Fit the cells that adapt in context, and measure nothing; `run` or `eval` goes on from there.

    Example: crossover compile --only few_shot

    Example: crossover compile intents.yaml --only gepa
    """,
)
finetune = _stage(
    "finetune",
    "weights",
    """Train the cells that adapt in weights, and measure nothing; `run` or `eval` goes on from there.

    Example: crossover finetune

    Example: crossover finetune intents.yaml --only sft --max-minutes 60
    """,
)
