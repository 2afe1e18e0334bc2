"""The verb `report`, and the part that `run` shares with it: files to write and gates to hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.options import (
    EXIT_GATE,
    CellFlags,
    GateFlags,
    experiment_of,
    experiment_options,
    gate_options,
    store_option,
)

if TYPE_CHECKING:
    from crossover.eval.analysis.compare import Comparison
    from crossover.eval.analysis.gates import Gates
    from crossover.eval.experiment.spec import Experiment
    from crossover.eval.store.result import Finished


@click.command()
@experiment_options
@click.option(
    "-o",
    "--output",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Write .html, .md, .json, .csv, .xml (JUnit) or .txt; several times for several. Without: print the table.",
)
@gate_options
@store_option
def report(cells: CellFlags, gates: GateFlags, store: Path, output: tuple[Path, ...]) -> int:
    """Report on the finished cells of the experiment; calls no model and spends nothing.

    Without FILE: crossover.yaml of this folder, else the quickstart. Give it the flags of `run`.

    Example: crossover report intents.yaml -o report.html -o report.md
    """
    experiment, options = experiment_of(cells), report_options(cells, gates, output)
    from crossover.eval.analysis.compare import compare
    from crossover.eval.report.table import render
    from crossover.eval.run.loading import finished

    found = finished(experiment, store=store)
    comparison = compare(found.results, needs=experiment.needs, prices=experiment.prices, experiment=experiment.name)
    if (count := len(found.results)) < found.planned:
        click.echo(f"warning: {count} of {found.planned} cells are finished: the table is partial", err=True)
    if not options.outputs:
        click.echo(render(comparison), nl=False)
    return deliver(experiment, comparison, store=store, options=options, found=found)


@dataclass(frozen=True)
class ReportOptions:
    """The files and gates that a comparison is written to and held against."""

    outputs: tuple[Path, ...]
    """Files to write, each in the form of its suffix."""
    gates: "Gates"
    command: str
    """The command line that measures the same cells."""


def report_options(cells: CellFlags, flags: GateFlags, output: tuple[Path, ...]) -> ReportOptions:
    """Return the flags as options of a report, checked before anything is spent.

    Raises:
        UserError: the baseline cannot be read, or a file has a suffix of no known form.
    """
    from crossover.eval.analysis.gates import Gates, read_baseline
    from crossover.eval.report.forms import check_suffix

    for path in output:
        check_suffix(path)
    if flags.baseline is not None:
        read_baseline(flags.baseline)
    gates = Gates(flags.fail_under, flags.baseline, flags.fail_on_inconclusive)
    return ReportOptions(output, gates, cells.command_line("run"))


def deliver(
    experiment: "Experiment",
    comparison: "Comparison",
    *,
    store: Path,
    options: ReportOptions,
    found: "Finished | None" = None,
) -> int:
    """Write the files, name the gates that failed on stderr, and return the exit code.

    `found` holds the finished results; they are read from the store when files need them and it is None.
    """
    from crossover.eval.analysis.gates import apply_gates

    outcomes = apply_gates(options.gates, comparison, store=store)
    if options.outputs:
        from crossover.eval.report.data import ReportData
        from crossover.eval.report.forms import write_report
        from crossover.eval.run.loading import finished

        found = found or finished(experiment, store=store)
        data = ReportData(experiment, comparison, found, options.command, tuple(outcomes))
        for path in options.outputs:
            write_report(data, path)
    failed = [o for o in outcomes if not o.passed]
    for o in failed:
        click.echo(f"gate failed: {o.task}: {o.detail}", err=True)
    return EXIT_GATE if failed else 0
