"""Options that several verbs share, and the experiment that they name."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from crossover.eval.experiment.spec import Experiment

Decorated = Callable[..., Any]


def store_option(command: Decorated) -> Decorated:
    """Add `--store`."""
    return click.option(
        "--store", type=click.Path(path_type=Path), default=Path("mlruns"), help="Folder that keeps runs."
    )(command)


def experiment_options(command: Decorated) -> Decorated:
    """Add FILE and the flags that choose cells: what `run` measured, the same flags of another verb find again."""
    for add in (
        click.option("--seeds", metavar="0,1,2", help="Seeds, in place of the file's."),
        click.option("--only", metavar="METHOD,…", help="Run these methods alone."),
        click.option("--limit", type=click.IntRange(1), help="At most this many test examples a task."),
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


LIMITS = ("usd", "minutes", "calls", "tokens")


def limit_options(command: Decorated) -> Decorated:
    """Add the limits of a run; each is checked before every call."""
    for add in (
        click.option("--max-tokens", type=click.IntRange(0), help="Stop before more tokens are used."),
        click.option("--max-calls", type=click.IntRange(0), help="Stop before more calls are made."),
        click.option("--max-minutes", type=click.FloatRange(0), help="Make no call after this time."),
        click.option("--max-usd", type=click.FloatRange(0), help="Stop before more dollars are spent."),
    ):
        command = add(command)
    return command


def gate_options(command: Decorated) -> Decorated:
    """Add the gates: conditions under which the verb ends with exit code 1."""
    for add in (
        click.option("--fail-on-inconclusive", is_flag=True, help="Exit 1 when a verdict abstains."),
        click.option(
            "--baseline",
            type=click.Path(path_type=Path),
            help="Exit 1 when an arm is significantly worse than in this --json document.",
        ),
        click.option("--fail-under", type=click.FloatRange(0, 1), help="Exit 1 when a task's best score is below."),
    ):
        command = add(command)
    return command


def numbers(text: str | None, flag: str) -> tuple[int, ...]:
    """Return the whole numbers of a comma-separated flag."""
    try:
        return tuple(int(n) for n in text.split(",")) if text else ()
    except ValueError:
        raise click.UsageError(f"{flag} {text}: not whole numbers; write {flag} 0,1,2") from None


def experiment_of(file: Path | None, flags: dict[str, Any]) -> "Experiment":
    """Return the experiment that FILE and flags name; warnings go to stderr, errors are raised together.

    Without FILE: crossover.yaml of this folder, else the quickstart.
    """
    from crossover.eval.experiment.read import QUICKSTART, Overrides, read_experiment
    from crossover.models.errors import UserError

    default = Path("crossover.yaml")
    overrides = Overrides(
        settings=flags["settings"],
        limit=flags["limit"],
        only=tuple(flags["only"].split(",") if flags["only"] else ()),
        seeds=numbers(flags["seeds"], "--seeds"),
        limits={n: flags[f"max_{n}"] for n in LIMITS if flags.get(f"max_{n}") is not None},
    )
    experiment, problems = read_experiment(file or (default if default.exists() else QUICKSTART), overrides)
    if experiment is None:
        raise UserError("\n".join(str(p) for p in problems))
    for p in problems:
        click.echo(str(p), err=True)
    return experiment


def command_line(verb: str, file: Path | None, flags: dict[str, Any]) -> str:
    """Return the command that names the same cells again."""
    import shlex

    words = ["crossover", verb, *([str(file)] if file else [])]
    for setting in flags["settings"]:
        words += ["--set", setting]
    for name in ("limit", "only", "seeds"):
        if flags[name]:
            words += [f"--{name}", str(flags[name])]
    return shlex.join(words)
