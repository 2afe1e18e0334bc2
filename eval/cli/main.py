"""The command line. Nothing heavy is imported before a command needs it."""

import difflib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossover.eval.cli.compare import compare, recommend
from crossover.eval.cli.export import export
from crossover.eval.cli.human_sheet import human_sheet
from crossover.eval.cli.index import index
from crossover.eval.cli.init import init
from crossover.eval.cli.options import experiment_of, experiment_options, gate_options, limit_options, store_option
from crossover.eval.cli.report import deliver, report, wanted_of
from crossover.eval.cli.stages import compile_, finetune
from crossover.eval.cli.sync import sync
from crossover.eval.run.interrupt import EXIT_CANNOT_RUN, EXIT_INTERRUPTED, INTERRUPTED

if TYPE_CHECKING:
    from crossover.eval.experiment.spec import Experiment

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # MLflow's server waits for the network without it
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
}
EXIT_FAULT = 1


class _Verbs(click.Group):
    """A group that knows a near match for a mistyped verb."""

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
    try:
        code = crossover.main(args=argv, prog_name="crossover", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as e:
        click.echo(f"error: {e.format_message()}", err=True)
        return EXIT_CANNOT_RUN
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: what was measured is kept; the same command goes on from there", err=True)
        return EXIT_INTERRUPTED
    except Exception as e:
        from crossover.eval.report.visible import visible
        from crossover.models.api_keys import redact
        from crossover.models.errors import UserError

        if not isinstance(e, UserError):
            # A fault of ours; providers quote keys in what they refuse.
            click.echo(visible(redact(traceback.format_exc())), err=True)
            return EXIT_FAULT
        for line in visible(redact(str(e))).splitlines():
            click.echo(line if line.startswith(("error: ", "warning: ")) else f"error: {line}", err=True)
        return EXIT_CANNOT_RUN


@click.group(cls=_Verbs, context_settings={"auto_envvar_prefix": "CROSSOVER", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crossover")
def crossover() -> None:
    """Compare prompting with fine-tuning on one frozen split, and say which to use.

    Example: crossover run --limit 50
    """


def measuring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of the verbs that measure."""
    for add in (
        store_option,
        click.option("--no-progress", is_flag=True, help="No progress."),
        click.option("-v", "--verbose", is_flag=True, help="Log lines of the libraries too."),
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
        click.option("--tracking-uri", help="MLflow's URI, in place of sqlite in the store; `none` for no tracking."),
        click.option(
            "-o",
            "--output",
            multiple=True,
            type=click.Path(path_type=Path),
            help="Also write .html, .md, .json, .csv, .xml (JUnit) or .txt.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, schema version 1."),
        gate_options,
        limit_options,
        click.option("-j", "--threads", type=click.IntRange(1), default=32, help="Concurrent calls."),
        experiment_options,
    ):
        command = add(command)
    return command


@crossover.command()
@measuring_options
@click.option("--dry-run", is_flag=True, help="Print the missing cells, what they take at most, and stop.")
@click.option("--fresh", is_flag=True, help="Measure every cell again; what was measured is kept aside.")
def run(file: Path | None, dry_run: bool, fresh: bool, **flags: Any) -> int:
    """Measure every cell of the experiment, compare them and reach a verdict.

    Without FILE: crossover.yaml of this folder, else the quickstart. The same command again resumes.

    Example: crossover run intents.yaml --seeds 0,1,2 -o result.html
    """
    if dry_run:
        return _dry_run(experiment_of(file, flags), flags["store"])
    return _measure(file, flags, fresh=fresh)


@crossover.command("eval")
@measuring_options
def evaluate(file: Path | None, **flags: Any) -> int:
    """Measure and compare the cells that `compile`, `finetune` or a run has fitted, and fit no other.

    Example: crossover eval intents.yaml
    """
    return _measure(file, flags, fitted_only=True)


def _measure(file: Path | None, flags: dict[str, Any], **how: bool) -> int:
    """Run the experiment and print and write what came of it."""
    store: Path = flags["store"]
    experiment, wanted = experiment_of(file, flags), wanted_of(file, flags)
    if flags["verbose"]:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    from crossover.eval.report.table import render, to_json
    from crossover.eval.report.visible import visible
    from crossover.eval.run.progress import Progress
    from crossover.eval.run.run import run_experiment

    progress = Progress(stream=sys.stderr, enabled=not (flags["quiet"] or flags["no_progress"]))
    try:
        comparison = run_experiment(
            experiment,
            store=store,
            tracking_uri=flags["tracking_uri"],
            threads=flags["threads"],
            progress=progress,
            **how,
        )
    finally:
        progress.close()
    as_json: bool = flags["as_json"]
    click.echo(json.dumps(to_json(comparison), indent=1) if as_json else visible(render(comparison)), nl=as_json)
    if not as_json:
        where = "" if store == Path("mlruns") else f" --store {store}"
        click.echo(f"\nevery run, row and artifact: crossover ui{where}")
    code = deliver(experiment, comparison, store=store, wanted=wanted)
    interrupted = comparison.partial is not None and comparison.partial.stopped == INTERRUPTED
    return EXIT_INTERRUPTED if interrupted else code


def _dry_run(experiment: "Experiment", store: Path) -> int:
    from crossover.eval.report.visible import visible
    from crossover.eval.run.forecast import forecast, forecast_table

    cells, finished = forecast(experiment, store=store)
    for line in forecast_table(cells):
        click.echo(visible(line))
    click.echo(f"{len(cells)} cells, {finished} finished" if finished else f"{len(cells)} cells", err=True)
    return 0


@crossover.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the file: dotted.key=value."
)
def validate(file: Path, settings: tuple[str, ...]) -> int:
    """Check an experiment file and its data; spends nothing, reports all faults at once.

    Example: crossover validate intents.yaml
    """
    from crossover.eval.experiment.read import Overrides, read_partly
    from crossover.eval.run.prepare import check_models, load_tasks

    experiment, problems = read_partly(file, Overrides(settings=settings))
    tasks, found = load_tasks(experiment.tasks)
    # The reader of the file has named missing files already, with their line.
    problems += [p for p in found if not p.what.endswith("no such file")] + check_models(experiment)
    for name, task in tasks.items():
        sizes = ", ".join(f"{k} {len(v)}" for k, v in task.splits().items())
        corpus = f", corpus {len(task.corpus)}" if task.corpus else ""
        metric = task.metric_name.partition("@")[0]
        click.echo(f"{name}: {sizes}{corpus}, metric {metric}, split {task.split_sha256()[:12]}")
    for p in problems:
        click.echo(str(p), err=True)
    errors = sum(p.level == "error" for p in problems)
    warnings = len(problems) - errors
    click.echo(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return EXIT_CANNOT_RUN if errors else 0


@crossover.command()
@click.argument("what", required=False, type=click.Choice(["tasks", "methods", "models", "programs", "runs"]))
@store_option
def ls(what: str | None, store: Path) -> None:
    """List what there is: tasks, methods, models, programs, or the finished runs.

    Example: crossover ls methods
    """
    from crossover.eval.experiment import catalog

    lists = {"tasks": catalog.tasks, "methods": catalog.methods, "programs": catalog.modules}
    for title, read in lists.items():
        if what in (None, title):
            if what is None:
                click.echo(f"{title}:")
            for e in read():
                click.echo(f"  {e.name:<16} {e.summary}")
    if what in (None, "models"):
        if what is None:
            click.echo("models:")
        click.echo(f"  {'embedded':<16} The small language model that ships with crossover.")
        click.echo(f"  {'local:FOLDER':<16} Any Hugging Face causal language model, by folder or hub id.")
        click.echo(f"  {'PROVIDER/NAME':<16} Any model that LiteLLM knows: openai/…, anthropic/…, ollama_chat/….")
    if what == "runs":
        for line in catalog.runs(store):
            click.echo(line)


@crossover.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--tracking-uri", help="MLflow's URI, in place of sqlite in the store.")
@store_option
def ui(store: Path, port: int, tracking_uri: str | None) -> int:
    """Open the MLflow UI on the store, on loopback; Ctrl-C ends it.

    Example: crossover ui --port 5001
    """
    from crossover.eval.tracking.server import serve_ui

    return serve_ui(store, port=port, tracking_uri=tracking_uri)


@crossover.command()
@store_option
def doctor(store: Path) -> int:
    """Show versions, cores, GPU, keys present (never their value) and the store.

    Example: crossover doctor
    """
    from crossover.eval.cli.doctor import checks

    bad = 0
    for name, ok, text in checks(store):
        bad += not ok
        click.echo(f"{'ok ' if ok else 'BAD'}  {name:<18} {text}")
    return EXIT_CANNOT_RUN if bad else 0


crossover.add_command(compile_)
crossover.add_command(finetune)
crossover.add_command(compare)
crossover.add_command(recommend)
crossover.add_command(report)
crossover.add_command(index)
crossover.add_command(init)
crossover.add_command(sync)
crossover.add_command(export)
crossover.add_command(human_sheet)

if __name__ == "__main__":
    sys.exit(main())
