"""The verb `ui`: look at the store in MLflow."""

import sys
from pathlib import Path

import click

from crossover.eval.cli.options import store_option


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--tracking-uri", help="MLflow's URI, in place of sqlite in the store.")
@click.option("--open/--no-open", "opens", default=None, help="Open the browser; by default where a terminal is.")
@store_option
def ui(store: Path, port: int, tracking_uri: str | None, opens: bool | None) -> int:
    """Open the MLflow UI on the store, at the charts of the last run, on loopback; Ctrl-C ends it.

    Example: crossover ui

    Example: crossover ui --port 5001
    """
    from crossover.eval.tracking.server import serve_ui

    return serve_ui(store, port=port, tracking_uri=tracking_uri, opens=sys.stdout.isatty() if opens is None else opens)
