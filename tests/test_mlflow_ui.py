"""What people see in MLflow's own pages: a real server over the store of a real run, in headless Chromium."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from browser import CHROMIUM, Page, chromium
from served_ui import served_ui

from crossover.eval.tracking.tracker import Tracker

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM: MLflow's pages are not looked at")
PICTURES = os.environ.get("CROSSOVER_PICTURES", "")
"""Folder to keep the screenshots in, for a person to look at."""
ARMS = ["retrieved_demos", "sft", "zero_shot"]


@pytest.fixture(scope="module")
def runs(openings_run: Path) -> dict[str, str]:
    """Return run ids by method, and `experiment`."""
    client = Tracker(openings_run / "mlruns").client
    experiment = client.get_experiment_by_name("openings").experiment_id
    found = client.search_runs([experiment], "tags.`crossover.kind` = 'cell'")
    return {r.data.params["method"]: r.info.run_id for r in found} | {"experiment": experiment}


@pytest.fixture(scope="module")
def address(openings_run: Path) -> Iterator[str]:
    with served_ui(openings_run / "mlruns") as address:
        yield address


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def see(page: Page, url: str, *words: str) -> str:
    """Open a view, wait until it shows all words, and return its text."""
    page.visit(url, f"{json.dumps(words)}.every(w => document.body && document.body.innerText.includes(w))")
    if PICTURES:
        page.screenshot(Path(PICTURES) / f"{words[0].replace(' ', '-')}.png")
    return str(page.run("document.body.innerText"))


def test_the_runs_table_sorted_by_score_names_the_arms(page: Page, address: str, runs: dict[str, str]) -> None:
    order = "orderByKey=metrics.%60score%60&orderByAsc=false"
    names = ("retrieved_demos n=all", "sft n=all", "zero_shot seed=0")
    text = see(page, f"{address}/#/experiments/{runs['experiment']}/runs?{order}", "Sort: score", *names)
    # By age, which is the table's own order, sft would come first.
    assert min(names, key=text.index) == names[0]


def test_the_compare_view_sets_arms_side_by_side(page: Page, address: str, runs: dict[str, str]) -> None:
    ids = quote(json.dumps([runs[m] for m in ARMS]))
    text = see(
        page,
        f"{address}/#/compare-runs?runs={ids}&experiments={quote(json.dumps([runs['experiment']]))}",
        "Comparing 3 Runs",
        "p95_ms",
        "crossover.kind",
    )
    # One key stands for all arms: no metric is named after one of them.
    for key in ("score", "score_low", "score_high", "fit_usd", "macro_f1", "p95_ms"):
        assert key in text.split(), key
    assert "size\tall\tall\tall" in text
    assert "seed\t0\t0\t0" in text


def test_the_artifact_view_shows_program_rows_and_model(page: Page, address: str, runs: dict[str, str]) -> None:
    run = f"{address}/#/experiments/{runs['experiment']}/runs/{runs['retrieved_demos']}"
    text = see(page, f"{run}/artifacts", "Artifacts", "rows.json", "program")
    assert {"model", "program", "notes.json", "rows.json"} <= set(text.split())
    overview = see(page, run, "About this run", "Parent run", "openings.openings", "retrieved_demos demos=3")
    assert "size" in overview
    assert "seed" in overview
