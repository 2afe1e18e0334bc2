"""The verb `report`, and what `run` shares with it: files to write and gates to hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossover.eval.cli.options import command_line, experiment_of, experiment_options, gate_options, store_option

if TYPE_CHECKING:
    from crossover.eval.analysis.compare import Comparison
    from crossover.eval.analysis.gates import Gates
    from crossover.eval.experiment.spec import Experiment
    from crossover.eval.store.result import Finished

EXIT_GATE = 1


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
def report(file: Path | None, store: Path, **flags: Any) -> int:
    """Report on the finished cells of the experiment; calls no model and spends nothing.

    Without FILE: crossover.yaml of this folder, else the quickstart. Give the flags that `run` was given.

    Example: crossover report intents.yaml -o report.html -o report.md
    """
    experiment, wanted = experiment_of(file, flags), wanted_of(file, flags)
    from crossover.eval.analysis.compare import compare
    from crossover.eval.report.table import render
    from crossover.eval.run.prepare import finished

    found = finished(experiment, store=store)
    comparison = compare(found.results, needs=experiment.needs, prices=experiment.prices, experiment=experiment.name)
    if (count := len(found.results)) < found.planned:
        click.echo(f"warning: {count} of {found.planned} cells are finished: the table is partial", err=True)
    if not wanted.outputs:
        click.echo(render(comparison), nl=False)
    return deliver(experiment, comparison, store=store, wanted=wanted, found=found)


@dataclass(frozen=True)
class Wanted:
    """What is asked of a comparison besides the table."""

    outputs: tuple[Path, ...]
    """Files to write."""
    gates: "Gates"
    command: str
    """The command line that measures the same."""


def wanted_of(file: Path | None, flags: dict[str, Any]) -> Wanted:
    """Return what the flags ask for; what is wrong with it is said before anything is spent.

    Raises:
        UserError: the baseline cannot be read, or a file cannot be written in the form of its suffix.
    """
    from crossover.eval.analysis.gates import Gates, read_baseline
    from crossover.eval.report.forms import check_suffix

    for path in flags["output"]:
        check_suffix(path)
    if flags["baseline"] is not None:
        read_baseline(flags["baseline"])
    gates = Gates(flags["fail_under"], flags["baseline"], flags["fail_on_inconclusive"])
    return Wanted(flags["output"], gates, command_line("run", file, flags))


def deliver(
    experiment: "Experiment",
    comparison: "Comparison",
    *,
    store: Path,
    wanted: Wanted,
    found: "Finished | None" = None,
) -> int:
    """Write the files, say which gates failed on stderr, and return the exit code.

    `found` is what the store holds of the experiment; it is read when files are wanted and it is not given.
    """
    from crossover.eval.analysis.gates import apply_gates

    outcomes = apply_gates(wanted.gates, comparison, store=store)
    if wanted.outputs:
        from crossover.eval.report.data import ReportData
        from crossover.eval.report.forms import write_report
        from crossover.eval.run.prepare import finished

        found = found or finished(experiment, store=store)
        data = ReportData(experiment, comparison, found, wanted.command, tuple(outcomes))
        for path in wanted.outputs:
            write_report(data, path)
    failed = [o for o in outcomes if not o.passed]
    for o in failed:
        click.echo(f"gate failed: {o.task}: {o.detail}", err=True)
    return EXIT_GATE if failed else 0
