"""Take the pictures of the documents of a finished run, and write what its terminal shows into README and verdict.md.

make demo && python benchmarks/pictures.py
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from section import write_section

from crossover.eval.store.recorded import read_recorded
from crossover.eval.tracking.tracker import Tracker

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from browser import Page, chromium
from mlflow_views import Views
from served_ui import served_ui

ROOT = Path(__file__).parent.parent
TERMINALS = {96: ROOT / "README.md", 80: ROOT / "docs" / "verdict.md"}
"""Columns of the terminal to the document that shows it."""
PAGE_HEIGHTS = {1280: 960, 390: 1180}
"""Pixels that the first screen of the page takes at each width."""
NO_ASSISTANT = """
if (location.protocol === "http:") localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")
"""
TRIES = 40
"""Looks at a page, half a second apart, after which it is pictured although it still moves."""


def main() -> None:
    """Take every picture, and write the terminal's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path, default=Path("quickstart.html"), help="page that the run wrote")
    parser.add_argument("store", nargs="?", type=Path, default=Path("mlruns"), help="store of the run")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "pictures", help="where the pictures go")
    flags = parser.parse_args()
    flags.folder.mkdir(exist_ok=True)
    for columns, document in TERMINALS.items():
        write_section("terminal", f"```\n{terminal(flags.store, columns)}```", document)
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        take_page(browser, flags.page, flags.folder)
        with served_ui(flags.store.resolve()) as server:
            take_mlflow(browser, server, flags.store, flags.folder)


def terminal(store: Path, columns: int) -> str:
    """Return what a run ends with, on a terminal of this width."""
    command = [sys.executable, "-m", "crossover.eval.cli.main", "recommend", "--store", str(store)]
    environment = os.environ | {"COLUMNS": str(columns)}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def take_page(browser: Page, page: Path, folder: Path) -> None:
    """Picture the first screen of a page at both widths, light and dark."""
    for width, height in PAGE_HEIGHTS.items():
        for theme in ("light", "dark"):
            browser.open(page, width=width, height=height, dark=theme == "dark")
            picture(browser, folder / f"page-{width}-{theme}.png")


def take_mlflow(browser: Page, server: str, store: Path, folder: Path) -> None:
    """Picture MLflow's views of the last run of a store; of several tasks, arms of one that retrieves."""
    client, name = Tracker(store).client, read_recorded(store).experiment
    views = Views(browser, server, client.get_experiment_by_name(name).experiment_id)
    parent = client.search_runs([views.experiment], "tags.`crossover.kind` = 'experiment'", max_results=1)[0]
    arms = client.search_runs([views.experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    shown = next((a for a in arms if a.data.params["retrieval"] != "none"), arms[0])
    arms = [a for a in arms if a.data.params["task"] == shown.data.params["task"]]
    # On a first visit MLflow opens its assistant over a quarter of the page.
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=NO_ASSISTANT)
    best, other = sorted(arms, key=lambda a: -a.data.metrics["accuracy"])[:2]
    best_id, other_id = best.info.run_id, other.info.run_id
    (trace,) = client.search_traces(locations=[views.experiment], run_id=best_id, max_results=1)
    pictures: dict[str, Callable[[], str]] = {
        "charts": lambda: views.charts(len(arms)),
        "runs": lambda: views.table(best.info.run_name),
        "run": lambda: views.run(parent.info.run_id, "Confidence: "),
        "evaluation": lambda: views.traces(best_id, beside=other_id, words=["compare to", other.info.run_name]),
        "traces": lambda: views.trace(trace.info.trace_id),
        "compare": lambda: views.compare([a.info.run_id for a in arms]) and views.differences(),
    }
    for name, open_view in pictures.items():
        open_view()
        picture(browser, folder / f"mlflow-{name}.png")


def picture(browser: Page, file: Path) -> None:
    """Write what the window shows, once it stands still, as a PNG of 256 colours, a third of the size."""
    before, shown = b"", browser.screenshot()
    for _ in range(TRIES):
        if shown == before:
            break
        time.sleep(0.5)
        before, shown = shown, browser.screenshot()
    image = Image.open(io.BytesIO(shown)).convert("RGB")
    # The other method mixes colours that few pixels have, such as those of the arms.
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
