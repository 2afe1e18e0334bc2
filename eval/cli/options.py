"""Options that several verbs share, each group handed to the verb as one record, and the exit codes."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from crossover.eval.cli.output import say

if TYPE_CHECKING:
    from crossover.eval.experiment.read import Overrides
    from crossover.eval.experiment.spec import Experiment

Decorated = Callable[..., Any]
STORE = Path("mlruns")
"""Folder that keeps runs, unless `--store` names another."""
EXIT_GATE, EXIT_CANNOT_RUN, EXIT_FAULT, EXIT_PARTIAL = 1, 2, 3, 4
"""A gate failed; the input is wrong and nothing was paid; the program has a bug; something could not be measured."""


@dataclass(frozen=True)
class CellFlags:
    """FILE and the flags that choose cells; the flags of a `run` find the same cells in every verb."""

    file: Path | None
    settings: tuple[str, ...]
    limit: int | None
    only: str | None
    seeds: str | None

    def command_line(self, verb: str) -> str:
        """Return the command that names the same cells again."""
        words = ["crossover", verb, *([str(self.file)] if self.file else [])]
        for setting in self.settings:
            words += ["--set", setting]
        for name, value in (("limit", self.limit), ("only", self.only), ("seeds", self.seeds)):
            if value:
                words += [f"--{name}", str(value)]
        return shlex.join(words)


@dataclass(frozen=True)
class LimitFlags:
    """The limits of a run, in place of the file's."""

    max_usd: float | None = None
    max_minutes: float | None = None
    max_calls: int | None = None
    max_tokens: int | None = None

    def given(self) -> dict[str, float]:
        """Return the limits that were given, by their names in the experiment file."""
        limits = {f.name.removeprefix("max_"): vars(self)[f.name] for f in fields(self)}
        return {name: value for name, value in limits.items() if value is not None}


@dataclass(frozen=True)
class GateFlags:
    """Conditions under which the verb ends with exit code 1."""

    fail_under: float | None
    baseline: Path | None
    fail_on_inconclusive: bool


@dataclass(frozen=True)
class MeasuringFlags:
    """The flags of the verbs that measure, besides those that choose cells, limits and gates."""

    store: Path
    threads: int
    tracking_uri: str | None
    as_json: TextIO | None
    """Where JSON is printed."""
    details: bool
    output: tuple[Path, ...]
    allow_partial: bool
    quiet: bool
    verbose: bool
    no_progress: bool
    backend: str


def gathered(command: Decorated, name: str, record: type) -> Decorated:
    """Return the command with the flags that are fields of `record` gathered in its argument `name`."""

    @wraps(command)
    def call(**flags: Any) -> Any:
        own = {f.name: flags.pop(f.name) for f in fields(record) if f.name in flags}
        return command(**{name: record(**own)}, **flags)

    return call


@contextmanager
def reserved_stdout() -> Iterator[TextIO]:
    """Yield stdout, and send what libraries and their processes print there to stderr until the block ends."""
    own, descriptor = sys.stdout, os.dup(1)
    try:
        if own.fileno() == 1:
            own.flush()
            own = os.fdopen(descriptor, "w", encoding=own.encoding, errors=own.errors, closefd=False)
            os.dup2(2, 1)
    except OSError:  # a stream that tests put there has no descriptor
        pass
    try:
        with redirect_stdout(sys.stderr):
            yield own
    finally:
        own.flush()
        os.dup2(descriptor, 1)
        os.close(descriptor)


def json_option(command: Decorated) -> Decorated:
    """Add `--json`, whose value is the stream that JSON alone is printed to, or None."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=lambda context, _, given: context.with_resource(reserved_stdout()) if given else None,
        help="Print JSON, schema version 2.",
    )(command)


def store_option(command: Decorated) -> Decorated:
    """Add `--store`."""
    return click.option("--store", type=click.Path(path_type=Path), default=STORE, help="Folder that keeps runs.")(
        command
    )


def details_option(command: Decorated) -> Decorated:
    """Add `--details`."""
    text = "Print all tables: other metrics, passages, contrasts, labels, fields."
    return click.option("--details", is_flag=True, help=text)(command)


def experiment_options(command: Decorated) -> Decorated:
    """Add FILE and the flags that choose cells, as the argument `cells`."""
    command = gathered(command, "cells", CellFlags)
    for add in (
        click.option("--seeds", metavar="0,1,2", help="Seeds, in place of the file's."),
        click.option("--only", metavar="METHOD,…", help="Run these methods alone."),
        click.option(
            "--limit",
            type=click.IntRange(1),
            help="Test examples a task at most; val is halved with it, train stays.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a setting of the file: dotted.key=value.",
        ),
        click.argument("file", required=False, type=click.Path(path_type=Path)),
    ):
        command = add(command)
    return command


def limit_options(command: Decorated) -> Decorated:
    """Add the limits of a run, each checked before every call, as the argument `limits`."""
    command = gathered(command, "limits", LimitFlags)
    for add in (
        click.option(
            "--max-tokens",
            type=click.IntRange(0),
            help="Stop before more tokens, prompts and answers together.",
        ),
        click.option("--max-calls", type=click.IntRange(0), help="Stop before more calls, to local models too."),
        click.option("--max-minutes", type=click.FloatRange(0), help="Make no call after this time."),
        click.option(
            "--max-usd",
            type=click.FloatRange(0),
            help="Stop before APIs charge more; fits count, this machine not.",
        ),
    ):
        command = add(command)
    return command


def gate_options(command: Decorated) -> Decorated:
    """Add the gates, conditions under which the verb ends with exit code 1, as the argument `gates`."""
    command = gathered(command, "gates", GateFlags)
    for add in (
        click.option("--fail-on-inconclusive", is_flag=True, help="Exit 1 when a verdict abstains."),
        click.option(
            "--baseline",
            type=click.Path(path_type=Path),
            help="Exit 1 when an arm is significantly worse than in this --json document, or this run of the store.",
        ),
        click.option("--fail-under", type=click.FloatRange(0, 1), help="Exit 1 when a task's best score is below."),
    ):
        command = add(command)
    return command


def measuring_options(command: Decorated) -> Decorated:
    """Add the flags of the verbs that measure, as the arguments `cells`, `limits`, `gates` and `measuring`."""
    command = gathered(command, "measuring", MeasuringFlags)
    for add in (
        store_option,
        click.option("--no-progress", is_flag=True, help="No progress."),
        click.option("-v", "--verbose", is_flag=True, help="Log lines of the libraries too."),
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
        click.option("--allow-partial", is_flag=True, help="Exit 0, not 4, when something is unmeasured."),
        click.option("--tracking-uri", help="MLflow's URI, in place of sqlite in the store; `none` for no tracking."),
        click.option(
            "-o",
            "--output",
            multiple=True,
            type=click.Path(path_type=Path),
            help="Also write .html, .md, .json, .csv, .xml (JUnit) or .txt.",
        ),
        details_option,
        json_option,
        gate_options,
        limit_options,
        click.option(
            "--backend",
            default="local",
            show_default=True,
            metavar="local|ray[://HOST:PORT]|slurm[:local]",
            help="Where cells are fitted and scored; workers share its file system. slurm:local needs no Slurm.",
        ),
        click.option("-j", "--threads", type=click.IntRange(1), default=32, help="Concurrent calls, of each worker."),
        experiment_options,
    ):
        command = add(command)
    return command


def numbers(text: str | None, flag: str) -> tuple[int, ...]:
    """Return the whole numbers of a comma-separated flag."""
    try:
        return tuple(int(n) for n in text.split(",")) if text else ()
    except ValueError:
        raise click.UsageError(f"{flag} {text}: not whole numbers; write {flag} 0,1,2") from None


def check_readable(file: Path) -> None:
    """Refuse a pipe, a device or a folder, of which the first would keep a reader waiting for ever.

    Raises:
        UserError: it is one of these.
    """
    from crossover.models.errors import UserError

    if file.exists() and not file.is_file():
        raise UserError(f"{file}: no regular file; give another path")


def file_of(cells: CellFlags, limits: LimitFlags | None = None) -> "tuple[Path, Overrides]":
    """Return the experiment file and what the flags change of it.

    Without FILE: crossover.yaml of this folder, else the quickstart.

    Raises:
        UserError: FILE is a data file.
    """
    from crossover.eval.experiment.data_source import experiment_file_of, is_data
    from crossover.eval.experiment.read import QUICKSTART, Overrides
    from crossover.models.errors import UserError

    if cells.file is not None and is_data(str(cells.file)):
        file = experiment_file_of(str(cells.file))
        remedy = f"name {file}" if file.exists() else f"`crossover init {cells.file}` writes {file}"
        raise UserError(f"{cells.file}: a data file, where an experiment is wanted; {remedy}")
    default = Path("crossover.yaml")
    overrides = Overrides(
        settings=cells.settings,
        limit=cells.limit,
        only=tuple(cells.only.split(",") if cells.only else ()),
        seeds=numbers(cells.seeds, "--seeds"),
        limits=limits.given() if limits else {},
    )
    return cells.file or (default if default.exists() else QUICKSTART), overrides


def experiment_of(cells: CellFlags, limits: LimitFlags | None = None) -> "Experiment":
    """Return the experiment that FILE and flags name; warnings go to stderr, errors are raised together."""
    from crossover.eval.experiment.read import read_experiment
    from crossover.models.errors import UserError

    experiment, problems = read_experiment(*file_of(cells, limits))
    if experiment is None:
        raise UserError("\n".join(str(p) for p in problems))
    for p in problems:
        say(p)
    return replace(experiment, command=cells.command_line("run"))
