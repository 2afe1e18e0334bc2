"""The verb `sync`: send to MLflow what runs measured while it was away."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.options import store_option

if TYPE_CHECKING:
    from crossover.eval.analysis.compare import Comparison
    from crossover.eval.tracking.outbox import Unsent


@click.command()
@click.option("--tracking-uri", help="MLflow's URI, in place of sqlite in the store.")
@store_option
def sync(store: Path, tracking_uri: str | None) -> int:
    """Send the cells that are not in MLflow yet, with their rows; a second time it does nothing.

    Example: crossover sync --tracking-uri http://127.0.0.1:5000
    """
    from crossover.eval.store.lock import holding
    from crossover.eval.tracking.outbox import finish, send, unfinished, waiting
    from crossover.eval.tracking.tracker import Tracker, TrackingError, store_uri
    from crossover.models.errors import UserError

    keys = sorted(f.parent.name for f in store.glob("cells/*/unsent.json"))
    cells = waiting(store, keys)
    uri = store_uri(store, tracking_uri)
    if not cells and not unfinished(store, uri):
        click.echo(f"{store}: nothing is waiting to be sent")
        return 0
    with holding(store, keys, "sync"):
        sent = 0
        try:
            tracker = Tracker(store, tracking_uri)
            for result, unsent in cells:
                send(tracker, store, result, unsent)
                sent += 1
            for unsent in unfinished(store, uri):
                finish(tracker, store, unsent, _last_verdict(store, unsent))
        except TrackingError as e:
            what = f"MLflow: {e}; {sent} of {len(cells)} cells sent"
            raise UserError(f"{what}; `crossover sync` again when it answers") from e
    click.echo(f"{sent} cells sent to MLflow")
    return 0


def _last_verdict(store: Path, unsent: "Unsent") -> "Comparison | None":
    """Return the comparison of the experiment's last run, None where that was of other settings or was killed."""
    from crossover.eval.analysis.compare import compare
    from crossover.eval.store.recorded import read_recorded
    from crossover.models.errors import UserError

    try:
        found = read_recorded(store, unsent.experiment)
    except UserError:
        return None
    if found.params != unsent.params:
        return None
    return compare(found.results, needs=found.needs, prices=found.prices, experiment=found.experiment)
