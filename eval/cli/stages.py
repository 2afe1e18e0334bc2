"""The verbs `compile` and `finetune`: one stage of a run; nothing heavy is imported before it runs."""

import sys
from pathlib import Path
from typing import Any

import click

from crossover.eval.cli.options import experiment_of, experiment_options, limit_options, store_option
from crossover.eval.run.interrupt import EXIT_CANNOT_RUN, EXIT_INTERRUPTED, INTERRUPTED


def _stage(name: str, kind: Any, text: str) -> click.Command:
    """Return the verb that fits the cells of one kind."""

    @click.command(name, help=text)
    @experiment_options
    @click.option("-j", "--threads", type=click.IntRange(1), default=32, help="Concurrent calls.")
    @limit_options
    @click.option("--no-progress", is_flag=True, help="No progress.")
    @store_option
    def verb(file: Path | None, store: Path, threads: int, no_progress: bool, **flags: Any) -> int:
        experiment = experiment_of(file, flags)
        from crossover.eval.report.text import visible
        from crossover.eval.run.fitting import fit_experiment, fits_lines
        from crossover.eval.run.progress import Progress

        progress = Progress(stream=sys.stderr, enabled=not no_progress)
        try:
            fits = fit_experiment(experiment, kind, store=store, threads=threads, progress=progress)
        finally:
            progress.close()
        for line in fits_lines(fits):
            click.echo(visible(line))
        for line in fits.failures:
            click.echo(visible(f"error: {line}"), err=True)
        if fits.missing:
            click.echo(f"warning: stopped by {fits.stopped}; {fits.missing} cells are left for the next time", err=True)
        if fits.stopped == INTERRUPTED:
            return EXIT_INTERRUPTED
        return EXIT_CANNOT_RUN if fits.failures or (fits.missing and not fits.fitted) else 0

    return verb


compile_ = _stage(
    "compile",
    "context",
    """Fit the cells that adapt in context, and measure nothing; `run` or `eval` goes on from there.

    Example: crossover compile intents.yaml --only gepa
    """,
)
finetune = _stage(
    "finetune",
    "weights",
    """Train the cells that adapt in weights, and measure nothing; `run` or `eval` goes on from there.

    Example: crossover finetune intents.yaml --only sft --max-minutes 60
    """,
)
