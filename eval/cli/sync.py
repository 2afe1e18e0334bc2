"""The verb `sync`: send to MLflow what it lacks."""

from functools import partial
from pathlib import Path

import click

from crossover.eval.cli.options import store_option
from crossover.eval.cli.output import echo


@click.command()
@click.option("--tracking-uri", help="MLflow's URI, in place of sqlite in the store.")
@store_option
def sync(store: Path, tracking_uri: str | None) -> int:
    """Send what MLflow lacks, cells with their rows and verdicts, deleted ones too; a second time it does nothing.

    Example: crossover sync

    Example: crossover sync --tracking-uri http://127.0.0.1:5000
    """
    from crossover.eval.run.prompts import requests_of
    from crossover.eval.tracking import sync as tracking
    from crossover.eval.tracking.tracker import TrackingError
    from crossover.models.errors import UserError

    try:
        requests, note = partial(requests_of, store), partial(echo, err=True)
        sent = tracking.sync(store, tracking_uri, note=note, requests=requests)
    except TrackingError as e:
        raise UserError(f"MLflow: {e}; `crossover sync` again when it answers") from e
    echo(f"{store}: nothing is waiting to be sent" if sent is None else f"{sent} cells sent to MLflow")
    return 0
