"""The verb `load`: ask finished cells under load."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from crossover.eval.cli.options import json_option, store_option
from crossover.eval.cli.output import echo, say

if TYPE_CHECKING:
    from crossover.eval.store.loads import LoadLevel, Loop


@click.command()
@click.argument("cells", nargs=-1, required=True, metavar="CELL...")
@click.option("--concurrency", metavar="N,…", help="Closed loop: users at once, each asking again once answered.")
@click.option("--rate", metavar="R,…", help="Open loop: requests a second, whatever becomes of those before.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Of a level.")
@click.option("--requests", type=click.IntRange(1), default=10_000, show_default=True, help="Most of a level.")
@click.option("--api-base", default="", help="OpenAI-compatible server to ask, in place of the cell's own model.")
@click.option("--model", "models", multiple=True, help="Name on that server: one for all, or one for each cell.")
@click.option("--api-key", default="", help="`${NAME}` of the environment variable that holds the server's key.")
@json_option
@store_option
def load(
    cells: tuple[str, ...],
    concurrency: str | None,
    rate: str | None,
    seconds: float,
    requests: int,
    api_base: str,
    models: tuple[str, ...],
    api_key: str,
    as_json: TextIO | None,
    store: Path,
) -> int:
    """Ask finished cells under load: p50, p95 and p99, time to the first token, throughput.

    CELL is its key, or the start of it, as `crossover ls runs` shows it, or `winner`. Several cells are asked in turn,
    after the first of them alone: one adapter on a base, then all of them. Without a rate or a concurrency: 1 user at
    once, then 8. A level ends after its seconds or requests, whichever come first. What a server charges is not
    limited otherwise. The requests are kept in the store, and the page of a report shows them.

    Example: crossover load winner --concurrency 1,4,16

    Example: crossover load 3f2a91 b07c44 --rate 2,8 --seconds 60 --api-base http://127.0.0.1:8000/v1
    """
    levels = _levels("closed", "--concurrency", concurrency) + _levels("open", "--rate", rate)
    from crossover.eval.report.data import machine
    from crossover.eval.report.load import load_json, load_table
    from crossover.eval.run.load_test import Bound, measure_load, served_arms, served_specs, server_of
    from crossover.eval.run.winner import cell_named
    from crossover.eval.store.loads import save_load
    from crossover.models.errors import UserError

    results = [cell_named(store, name) for name in dict.fromkeys(cells)]
    tasks = list(dict.fromkeys(r.cell.task for r in results))
    if len(tasks) > 1:
        raise UserError(f"cells of several tasks ({', '.join(tasks)}); their requests differ, so ask each by itself")
    measured: list[LoadLevel] = []
    # Below the store, which a server elsewhere may see.
    with tempfile.TemporaryDirectory(dir=store) as folder:
        arms = served_arms(store, results, served_specs(results, api_base, models, api_key), Path(folder))
        for group in [arms[:1], arms] if len(arms) > 1 else [arms]:
            for loop, amount in levels or [("closed", 1.0), ("closed", 8.0)]:
                server = server_of([r.cell.model for r in results[: len(group)]], api_base, machine())
                level = measure_load(group, loop, amount, Bound(seconds, requests), task=tasks[0], server=server)
                file = save_load(store, level)
                measured.append(level)
                say(f"{len(level.requests)} requests: {file}")
    if as_json is not None:
        click.echo(json.dumps(load_json(measured), indent=1), file=as_json)
    else:
        echo("\n".join(load_table(measured)))
    return 0


def _levels(loop: "Loop", flag: str, text: str | None) -> "list[tuple[Loop, float]]":
    """Return the levels of a comma-separated flag."""
    try:
        amounts = [float(n) for n in text.split(",")] if text else []
    except ValueError:
        amounts = [0.0]
    if any(not 0 < n < 100_000 or (loop == "closed" and n % 1) for n in amounts):
        raise click.UsageError(f"{flag} {text}: not numbers above 0; write {flag} 1,4,16")
    return [(loop, n) for n in amounts]
