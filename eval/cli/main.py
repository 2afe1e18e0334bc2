"""The command line; heavy packages are imported by the verbs that need them."""

import difflib
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.compare import compare, print_comparison, recommend
from crossover.eval.cli.data_file import guess_options, with_data
from crossover.eval.cli.doctor import doctor
from crossover.eval.cli.export import export
from crossover.eval.cli.fetch import fetch
from crossover.eval.cli.human_sheet import human_sheet
from crossover.eval.cli.index import index
from crossover.eval.cli.init import init
from crossover.eval.cli.load import load
from crossover.eval.cli.ls import ls
from crossover.eval.cli.options import (
    EXIT_CANNOT_RUN,
    EXIT_FAULT,
    EXIT_PARTIAL,
    CellFlags,
    GateFlags,
    LimitFlags,
    MeasuringFlags,
    experiment_of,
    experiment_options,
    measuring_options,
    store_option,
)
from crossover.eval.cli.output import echo, say
from crossover.eval.cli.report import deliver, page_beside, report, report_options
from crossover.eval.cli.schema import schema
from crossover.eval.cli.show import show
from crossover.eval.cli.stages import compile_, finetune
from crossover.eval.cli.sync import sync
from crossover.eval.cli.ui import ui
from crossover.eval.cli.validate import validate
from crossover.eval.experiment.choices import Choices
from crossover.eval.run.interrupt import EXIT_INTERRUPTED, INTERRUPTED
from crossover.models.errors import shortened

if TYPE_CHECKING:
    from crossover.eval.experiment.spec import Experiment

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # MLflow's server waits for the network without it
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
}


LONGEST_ERROR = 1000
"""Characters of a line; a value that somebody pasted may be longer."""


class _Verbs(click.Group):
    """A group that suggests a near match for a mistyped verb, and gives every flag its environment twin."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the verb, each flag of which may come from CROSSOVER_<VERB>_<FLAG>, whatever Python calls it."""
        command = super().get_command(ctx, cmd_name)
        for option in command.params if command else ():
            long = [flag for flag in option.opts if flag.startswith("--")]
            if isinstance(option, click.Option) and long:
                option.envvar = f"CROSSOVER_{cmd_name}_{long[0].strip('-')}".replace("-", "_").upper()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"use one of {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"unknown verb `{args[0]}`; {hint}") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Warnings of libraries are lines of the log, which `-v` shows.
    logging.captureWarnings(True)
    try:
        code = crossover.main(args=argv, prog_name="crossover", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as e:
        say(f"error: {shortened(e.format_message(), LONGEST_ERROR)}")
        return EXIT_CANNOT_RUN
    except (click.Abort, KeyboardInterrupt):
        say("interrupted: what was measured is kept; the same command goes on from there")
        return EXIT_INTERRUPTED
    except Exception as e:
        from crossover.eval.report.text import visible
        from crossover.models.api_keys import redact
        from crossover.models.errors import UserError

        if not isinstance(e, UserError):
            from crossover.eval.store.faults import FULL, refusal

            refused = refusal(e)
            if refused is None:
                say(_fault_line(e))
                return EXIT_FAULT
            remedy = "free some space" if refused.errno in FULL else "name a place that can be written"
            e = UserError(f"{refused.filename or 'the disk'}: {refused.strerror}; {remedy}, and run again")
        for whole in visible(redact(str(e))).splitlines():
            line = shortened(whole, LONGEST_ERROR)
            say(line if line.startswith(("error: ", "warning: ")) else f"error: {line}")
        return EXIT_CANNOT_RUN


def _fault_line(error: Exception) -> str:
    """Write the traceback of an internal fault to a file in the temp folder, and return one line that names it.

    Both are redacted: providers quote keys in their error messages.
    """
    from crossover.models.api_keys import redact

    whole = redact("".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="crossover-fault-", suffix=".txt", delete=False) as f:
            f.write(whole)
    except OSError:
        return whole
    what = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    return f"error: internal fault: {what}; please report it with {f.name}, which holds the traceback"


@click.group(cls=_Verbs, context_settings={"auto_envvar_prefix": "CROSSOVER", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crossover")
def crossover() -> None:
    """Compare prompting with fine-tuning on one frozen split, and say which to use.

    Example: crossover run tickets.csv

    Example: crossover run --limit 50
    """


@crossover.command()
@measuring_options
@guess_options
@click.option("--dry-run", is_flag=True, help="Print the missing cells, what they take at most, and stop.")
@click.option("--fresh", is_flag=True, help="Measure every cell again; what was measured is kept aside.")
def run(
    cells: CellFlags,
    limits: LimitFlags,
    gates: GateFlags,
    measuring: MeasuringFlags,
    choices: Choices,
    yes: bool,
    dry_run: bool,
    fresh: bool,
) -> int:
    """Measure every cell of the experiment, compare them and reach a verdict.

    FILE is an experiment, or a data file such as tickets.csv, for which `init` writes one; `--output A,B` then names
    the columns to answer. Without FILE: crossover.yaml of this folder, else the quickstart. The same command again
    resumes.

    Example: crossover run tickets.csv --output Queue

    Example: crossover run intents.yaml --seeds 0,1,2 -o result.html
    """
    cells, measuring = with_data(cells, measuring, choices)
    if dry_run:
        return _dry_run(experiment_of(cells, limits), measuring.store)
    return _measure(cells, limits, gates, measuring, fresh=fresh)


@crossover.command()
@experiment_options
@store_option
def plan(cells: CellFlags, store: Path) -> int:
    """Print the cells that a run would measure, with the calls, tokens, seconds and dollars that they take at most.

    Without FILE: crossover.yaml of this folder, else the quickstart. `run --dry-run` is the same.

    Example: crossover plan

    Example: crossover plan intents.yaml --seeds 0,1,2
    """
    return _dry_run(experiment_of(cells), store)


@crossover.command("eval")
@measuring_options
def evaluate(cells: CellFlags, limits: LimitFlags, gates: GateFlags, measuring: MeasuringFlags) -> int:
    """Measure and compare the cells that `compile`, `finetune` or a run has fitted, and fit no other.

    Example: crossover eval

    Example: crossover eval intents.yaml -o result.html
    """
    return _measure(cells, limits, gates, measuring, fitted_only=True)


def _measure(
    cells: CellFlags,
    limits: LimitFlags,
    gates: GateFlags,
    flags: MeasuringFlags,
    *,
    fresh: bool = False,
    fitted_only: bool = False,
) -> int:
    """Run the experiment, print the comparison and write the files."""
    experiment = experiment_of(cells, limits)
    options = report_options(gates, experiment, flags.store, flags.output)
    if flags.verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    from crossover.eval.run.progress import Progress
    from crossover.eval.run.run import run_experiment
    from crossover.eval.tracking.pending import NONE

    progress = Progress(stream=sys.stderr, enabled=not (flags.quiet or flags.no_progress))
    try:
        comparison = run_experiment(
            experiment,
            store=flags.store,
            tracking_uri=flags.tracking_uri,
            threads=flags.threads,
            progress=progress,
            fresh=fresh,
            fitted_only=fitted_only,
            backend=flags.backend,
        )
    finally:
        progress.close()
    tracked = flags.tracking_uri != NONE
    print_comparison(comparison, as_json=flags.as_json, details=flags.details, store=flags.store, tracked=tracked)
    page = page_beside(flags.store, experiment.name)
    code = deliver(experiment, comparison, store=flags.store, options=options, page=page)
    if comparison.partial is not None and comparison.partial.stopped == INTERRUPTED:
        return EXIT_INTERRUPTED
    partial = comparison.partial is not None or bool(comparison.failures)
    return EXIT_PARTIAL if partial and not flags.allow_partial and not code else code


def _dry_run(experiment: "Experiment", store: Path) -> int:
    """Print the forecast of the missing cells."""
    from crossover.eval.experiment.spec import plan
    from crossover.eval.run.calibration import likely_lines
    from crossover.eval.run.forecast import forecast, forecast_table
    from crossover.eval.run.methods import launch_lines

    cells, finished = forecast(experiment, store=store)
    for line in [
        *forecast_table(cells),
        *likely_lines(cells, store, machine_hour_usd=experiment.prices.machine_hour_usd),
        *launch_lines(experiment),
    ]:
        echo(line)
    missing = len(plan(experiment)) - finished
    echo(f"{missing} cells, {finished} finished" if finished else f"{missing} cells", err=True)
    return 0


VERBS = (
    compile_,
    finetune,
    compare,
    doctor,
    recommend,
    report,
    index,
    init,
    load,
    ls,
    sync,
    export,
    fetch,
    human_sheet,
    schema,
    show,
    ui,
)
for verb in (*VERBS, validate):
    crossover.add_command(verb)

if __name__ == "__main__":
    sys.exit(main())
