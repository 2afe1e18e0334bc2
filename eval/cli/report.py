"""The verb `report`, and the part that `run` shares with it: files to write and gates to hold."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.options import (
    EXIT_GATE,
    CellFlags,
    GateFlags,
    check_readable,
    experiment_of,
    experiment_options,
    gate_options,
    store_option,
)
from crossover.eval.cli.output import echo, say

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
    """Report on the finished cells of an experiment; calls no model and spends nothing.

    FILE is an experiment file, with the flags of its `run`, or the name of a run; without it, the last run.

    Example: crossover report tickets.yaml -o junit.xml

    Example: crossover report -o report.html -o report.md
    """
    experiment = _experiment_of_run(cells, store) or experiment_of(cells)
    options = report_options(gates, experiment, store, output)
    from crossover.eval.analysis.compare import Partial, compare
    from crossover.eval.report.table import render
    from crossover.eval.run.loading import finished

    found = finished(experiment, store=store)
    comparison = compare(
        found.results,
        needs=experiment.needs,
        prices=experiment.prices,
        experiment=experiment.name,
        unit=experiment.compare,
    )
    if (count := len(found.results)) < found.planned:
        comparison = replace(comparison, partial=Partial("", count, found.planned))
        echo(f"warning: {count} of {found.planned} cells are finished: the table is partial", err=True)
    if not options.outputs:
        echo(render(comparison), nl=False)
    return deliver(experiment, comparison, store=store, options=options, found=found)


def _experiment_of_run(cells: CellFlags, store: Path) -> "Experiment | None":
    """Return the experiment of a recorded run, the last one where nothing names another; None for a file."""
    if cells != CellFlags(cells.file, (), None, None, None) or (cells.file and cells.file.suffix in (".yaml", ".yml")):
        return None
    from pydantic import TypeAdapter

    from crossover.eval.experiment.spec import Experiment
    from crossover.eval.store.recorded import read_recorded

    run = read_recorded(store, None if cells.file is None else str(cells.file))
    echo(f"run {run.experiment}", err=True)
    return replace(TypeAdapter(Experiment).validate_python(run.params), command=run.command)


@dataclass(frozen=True)
class ReportOptions:
    """The files and gates that a comparison is written to and held against."""

    outputs: tuple[Path, ...]
    """Files to write, each in the form of its suffix."""
    gates: "Gates"


def report_options(flags: GateFlags, experiment: "Experiment", store: Path, output: tuple[Path, ...]) -> ReportOptions:
    """Return the flags as options of a report, checked before anything is spent.

    Raises:
        UserError: the baseline cannot be read, or a file has a suffix of no known form.
    """
    from crossover.eval.analysis.gates import Gates, read_baseline, recorded_baseline
    from crossover.eval.report.forms import check_suffix
    from crossover.models.errors import UserError

    for path in output:
        check_suffix(path)
    baseline, named = None, flags.baseline
    if named is not None:
        is_file = named.suffix == ".json" or (named.exists() and not named.is_dir())
        if is_file:
            check_readable(named)
        if not is_file and str(named) == experiment.name:
            what = f"--baseline {named}: this run takes the place of the last one of its name"
            raise UserError(f"{what}; keep that one first: crossover report {named} -o before.json --store {store}")
        baseline = read_baseline(named) if is_file else recorded_baseline(str(named), store)
    return ReportOptions(output, Gates(flags.fail_under, baseline, flags.fail_on_inconclusive))


def page_beside(store: Path, experiment: str) -> Path:
    """Return where a run writes its page: beside the store, or in it where files beside it are not allowed."""
    from crossover.eval.store.names import file_name

    folder = store.parent if os.access(store.parent, os.W_OK) else store
    return folder / f"{file_name(experiment)}.html"


def deliver(
    experiment: "Experiment",
    comparison: "Comparison",
    *,
    store: Path,
    options: ReportOptions,
    found: "Finished | None" = None,
    page: Path | None = None,
) -> int:
    """Write the files, name the gates that failed on stderr, and return the exit code.

    `found` holds the finished results; they are read from the store when files need them and it is None. `page` is
    written where no file was asked for, unless it stands there already; a fault of it is a warning.
    """
    from crossover.eval.analysis.gates import apply_gates
    from crossover.eval.report.data import ReportData
    from crossover.eval.report.forms import write_report
    from crossover.eval.report.page import is_current
    from crossover.eval.run.loading import finished
    from crossover.eval.run.prompts import prompts_of
    from crossover.eval.store.loads import read_loads
    from crossover.models.errors import UserError

    outcomes, outputs = apply_gates(options.gates, comparison, store=store), options.outputs
    if page and not outputs and not outcomes and is_current(page, comparison):
        say(f"the page of this run: {page}")
    elif page and not outputs:
        outputs = (page,)
    try:
        for path in outputs:
            found = found or finished(experiment, store=store)
            data = ReportData(experiment, comparison, found, tuple(outcomes))
            if is_page := path.suffix == ".html":
                loads = read_loads(store, {r.key for r in found.results})
                data = replace(data, prompts=prompts_of(store, data), loads=loads)
            write_report(data, path)
            say(f"wrote {path}{': open it in a browser' * is_page}")
    except UserError as e:
        # A run that was stopped before its first cell was timed has scores, and nothing to report.
        if options.outputs and not (comparison.partial and comparison.partial.stopped):
            raise
        say(f"warning: {', '.join(map(str, outputs))}: not written: {e}")
    failed = [o for o in outcomes if not o.passed]
    for o in failed:
        say(f"gate failed: {o.task}: {o.detail}")
    return EXIT_GATE if failed else 0
