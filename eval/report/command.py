"""The verb `report`, and what `run` shares with it: files to write and gates to hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eval.options import command_line, experiment_of, experiment_options, gate_options, store_option

if TYPE_CHECKING:
    from eval.compare import Comparison
    from eval.experiment import Experiment
    from eval.gates import Gates

EXIT_GATE = 1


@click.command()
@experiment_options
@click.option(
    "-o", "--output", multiple=True, type=click.Path(path_type=Path),
    help="Write .html, .md, .json, .csv, .xml (JUnit) or .txt; several times for several. Without: print the table.",
)  # fmt: skip
@gate_options
@store_option
def report(file: Path | None, store: Path, **flags: Any) -> int:
    """Report on the finished cells of the experiment; calls no model and spends nothing.

    Without FILE: crossover.yaml of this folder, else the quickstart. Give the flags that `run` was given.

    Example: crossover report intents.yaml -o report.html -o report.md
    """
    experiment, gates = experiment_of(file, flags), gates_of(flags)
    from eval.compare import compare
    from eval.finished import finished
    from eval.table import render

    found = finished(experiment, store=store)
    comparison = compare(
        found.results, needs=experiment.needs, prices=experiment.prices, experiment=experiment.name
    )  # fmt: skip
    if found.planned > len(found.results):
        click.echo(
            f"warning: {len(found.results)} of {found.planned} cells are finished: the table is partial", err=True
        )
    if not flags["output"]:
        click.echo(render(comparison), nl=False)
    command = command_line("run", file, flags)
    return deliver(experiment, comparison, store=store, outputs=flags["output"], gates=gates, command=command)


def gates_of(flags: dict[str, Any]) -> "Gates":
    """Return the gates that the flags ask for; what is wrong with them or with `-o` is said before anything is spent.

    Raises:
        UserError: the baseline cannot be read, or a file cannot be written in the form of its suffix.
    """
    from eval.gates import Gates, read_baseline
    from eval.report.forms import check_suffix

    for path in flags["output"]:
        check_suffix(path)
    if flags["baseline"] is not None:
        read_baseline(flags["baseline"])
    return Gates(flags["fail_under"], flags["baseline"], flags["fail_on_inconclusive"])


def deliver(
    experiment: "Experiment",
    comparison: "Comparison",
    *,
    store: Path,
    outputs: Sequence[Path],
    gates: "Gates",
    command: str,
) -> int:
    """Write the files, say which gates failed on stderr, and return the exit code."""
    from eval.gates import apply_gates

    outcomes = apply_gates(gates, comparison, store=store)
    if outputs:
        from eval.finished import finished
        from eval.report.evidence import Evidence
        from eval.report.forms import write_report

        evidence = Evidence(experiment, comparison, finished(experiment, store=store), command, tuple(outcomes))
        for path in outputs:
            write_report(evidence, path)
    failed = [o for o in outcomes if not o.passed]
    for o in failed:
        click.echo(f"gate failed: {o.task}: {o.found}", err=True)
    return EXIT_GATE if failed else 0
