"""The verbs `compare` and `recommend`, which judge finished results anew and call no model."""

import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from crossover.eval.cli.options import STORE, details_option, json_option, store_option
from crossover.eval.cli.output import echo, encodable

if TYPE_CHECKING:
    from crossover.eval.analysis.compare import Comparison


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="A B [...]")
@json_option
@store_option
def compare(runs: tuple[str, ...], store: Path, as_json: TextIO | None) -> int:
    """Compare finished cells, or files of scores that other tools wrote, pair by pair on the same examples.

    A cell is named by its key, or the start of it, as `crossover ls runs` shows it; what `run --json` wrote to a .json
    file names the arm that it chose. Another file has one JSON object a line: `id`, `score` from 0 to 1, and where
    there are any `seed`, `cluster`, `split`, `seconds`, `usd`.

    Example: crossover compare 3f2a91 b07c44

    Example: crossover compare old.jsonl new.jsonl
    """
    if len(runs) < 2:
        raise click.UsageError(f"compare {runs[0]}: one run alone; name two or more")
    from crossover.eval.analysis.compare import compare as compare_results
    from crossover.eval.experiment.spec import Needs, Prices
    from crossover.eval.store.foreign import read_operands
    from crossover.eval.store.recorded import params_with

    results = read_operands(runs, store)
    known: dict[str, Any] = next((p for r in results if (p := params_with(store, r.key).get("prices"))), {})
    # Who names two runs wants these two compared.
    comparison = compare_results(results, needs=Needs(), prices=Prices(**known), experiment=" ".join(runs), unit="all")
    print_comparison(comparison, as_json=as_json, details=True, store=store, tracked=False)
    return 0


@click.command()
@click.argument("run", required=False)
@click.option("--volume", type=click.FloatRange(0, min_open=True), help="Requests a month.")
@click.option("--min-score", type=click.FloatRange(0, 1), help="Least mean score.")
@click.option("--max-p95-ms", type=click.FloatRange(0), help="Longest p95 in milliseconds.")
@click.option("--max-usd-per-month", type=click.FloatRange(0), help="Most dollars a month; needs a volume.")
@json_option
@details_option
@store_option
def recommend(
    run: str | None, store: Path, as_json: TextIO | None, details: bool, volume: float | None, **needs: float | None
) -> int:
    """Reach the verdict of a finished run again under other needs.

    RUN is the experiment's name; without it, the one that ran last. Needs that are not given stay as they were. With
    `--details`, a table shows the choice at other traffic and prices.

    Example: crossover recommend --max-usd-per-month 200 --volume 50000

    Example: crossover recommend support-intents --volume 1000000 --max-p95-ms 300
    """
    from crossover.eval.analysis.compare import Partial
    from crossover.eval.analysis.compare import compare as compare_results
    from crossover.eval.analysis.sweep import sensitivity_lines
    from crossover.eval.store.recorded import read_recorded
    from crossover.models.errors import UserError

    found = read_recorded(store, run)
    given = {k: v for k, v in {"volume_per_month": volume, **needs}.items() if v is not None}
    wanted = replace(found.needs, **given)
    if wanted.max_usd_per_month is not None and wanted.volume_per_month is None:
        raise UserError(f"--max-usd-per-month {wanted.max_usd_per_month:g} without a volume; add --volume")
    comparison = compare_results(
        found.results, needs=wanted, prices=found.prices, experiment=found.experiment, unit=found.compare
    )
    if len(found.results) < found.planned:
        comparison = replace(comparison, partial=Partial("", len(found.results), found.planned))
    print_comparison(comparison, as_json=as_json, details=details, store=store)
    if details and as_json is None:
        for task in comparison.split_sha256:
            lines = sensitivity_lines(task, comparison, found.results, needs=wanted, prices=found.prices)
            echo("\n" + "\n".join(lines))
    return 0


def print_comparison(
    comparison: "Comparison", *, as_json: TextIO | None, details: bool, store: Path, tracked: bool = True
) -> None:
    """Print a comparison as JSON to the stream that `--json` reserved, as all its tables, or as a summary.

    Text ends with the command that opens MLflow, unless the run was not tracked there.
    """
    from crossover.eval.report.schema import to_json
    from crossover.eval.report.summary import summary, terminal_width
    from crossover.eval.report.table import render
    from crossover.eval.report.text import visible

    store_flag = "" if store == STORE else f" --store {shlex.quote(str(store))}"
    if as_json is not None:
        text = json.dumps(to_json(comparison), indent=1) + "\n"
    elif details:
        ui = f"\nevery run, row and artifact: crossover ui{store_flag}\n" if tracked else ""
        text = f"{visible(render(comparison))}{ui}"
    else:
        colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        text = summary(comparison, width=terminal_width(), colored=colored, store_flag=store_flag, tracked=tracked)
    click.echo(encodable(text, sys.stdout), nl=False, file=as_json)
