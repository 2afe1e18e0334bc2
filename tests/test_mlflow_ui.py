"""What people see in MLflow's own pages: `crossover ui` over the store of a real run, in headless Chromium.

The clicks are those of docs/mlflow.md. One server and one browser serve all tests.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from browser import CHROMIUM, Page, chromium
from served_ui import served_ui

from crossover.eval.tracking.addresses import charts_address
from crossover.eval.tracking.tracker import Tracker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM: MLflow's pages are not looked at"),
]
PICTURES = os.environ.get("CROSSOVER_PICTURES", "")
"""Folder to keep the screenshots in, for a person to look at."""
ARMS = {"zero_shot": "zero_shot", "retrieved_demos": "retrieved_demos demos=3", "sft": "sft epochs=1 rank=4"}
"""Method to the name that its run has in MLflow."""
PATIENCE = 120.0
"""Seconds for a page, of which the browser loads the largest parts anew after every start."""


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


def shows(*words: str) -> str:
    """Return a script that is true once the page shows all words."""
    return f"{json.dumps(words)}.every(w => document.body && document.body.innerText.includes(w))"


def see(page: Page, url: str, until: str, picture: str) -> str:
    """Open a view, wait until a script gives something that is true, and return the text of the page."""
    page.visit(url, until, seconds=PATIENCE)
    return look(page, picture)


def look(page: Page, picture: str) -> str:
    """Return the text of the page, and keep a picture of it where one is wanted."""
    if PICTURES:
        page.screenshot(Path(PICTURES) / f"{picture}.png")
    return str(page.run("document.body.innerText"))


def click(page: Page, text: str, until: str) -> None:
    """Click the last link or tab of exactly this text, once it is there, and wait until a script gives something true.

    The first ones are those of the path and of the navigation beside it.
    """
    elements = "[...document.querySelectorAll('a, button, [role=tab], [role=button]')]"
    named = f"{elements}.filter(e => e.innerText.trim() === {json.dumps(text)}).at(-1)"
    page.wait(named, seconds=PATIENCE)
    page.run(f"{named}.click()")
    page.wait(until, seconds=PATIENCE)


def test_three_clicks_lead_from_the_charts_to_the_answers(page: Page, address: str, runs: dict[str, str]) -> None:
    bars = "document.querySelectorAll('.js-plotly-plot .bars .point').length >= 6"
    text = see(page, charts_address(address, runs["experiment"]), bars, "mlflow_charts")
    for shown in ("accuracy", "cost_usd_per_1k", "latency_p95_ms", "Sort: accuracy", "openings"):
        assert shown in text, shown
    # By age, which is the table's own order, sft would come first.
    assert min(ARMS.values(), key=text.index) == ARMS["retrieved_demos"]
    click(page, "openings", shows("About this run", "USE retrieved_demos demos=3", "Confidence: "))
    assert "significantly better than the next" in look(page, "mlflow_verdict")
    click(page, ARMS["retrieved_demos"], shows("About this run", "Parent run"))
    # The tab's own address: the page draws the tab anew after it was clicked, and may lose the click.
    traces = f"{address}/#/experiments/{runs['experiment']}/runs/{runs['retrieved_demos']}/traces"
    assert "refund" in see(page, traces, shows("Request", "Response", "score", "AVG"), "mlflow_traces")


def test_a_trace_opens_with_its_spans(page: Page, address: str, runs: dict[str, str], openings_run: Path) -> None:
    client, experiment, run = Tracker(openings_run / "mlruns").client, runs["experiment"], runs["retrieved_demos"]
    (trace,) = client.search_traces(locations=[experiment], run_id=run, max_results=1)
    url = f"{address}/#/experiments/{experiment}/traces?selectedEvaluationId={trace.info.trace_id}"
    text = see(page, url, shows("parse", "model"), "mlflow_trace")
    assert trace.info.request_preview in text


def test_two_arms_stand_side_by_side_on_the_same_questions(page: Page, address: str, runs: dict[str, str]) -> None:
    run = f"{address}/#/experiments/{runs['experiment']}/runs/{runs['retrieved_demos']}/traces"
    other = f"{run}?compareToRunUuid={runs['zero_shot']}"
    text = see(page, other, shows("compare to", "zero_shot", "AVG"), "mlflow_side_by_side")
    assert ARMS["retrieved_demos"] in text


def test_the_compare_view_sets_arms_side_by_side(page: Page, address: str, runs: dict[str, str]) -> None:
    ids, experiments = (quote(json.dumps(x)) for x in ([runs[m] for m in ARMS], [runs["experiment"]]))
    url = f"{address}/#/compare-runs?runs={ids}&experiments={experiments}"
    text = see(page, url, shows("Comparing 3 Runs", "accuracy_high", "crossover.kind"), "mlflow_compare")
    # MLflow draws the first rows alone; those in which the arms differ fit.
    page.run("document.querySelectorAll('[role=switch], input[type=checkbox]').forEach(e => e.click())")
    page.wait(shows("latency_p95_ms"), seconds=PATIENCE)
    keys = str(page.run("document.body.innerText")).split()
    # One key stands for all arms: no metric is named after one of them.
    for key in ("accuracy", "accuracy_low", "accuracy_high", "fit_usd", "detail/macro_f1", "latency_p95_ms"):
        assert key in keys, key
    assert "size\tall\tall\tall" in text
    assert "seed\t0\t0\t0" in text


def test_the_artifact_view_shows_program_rows_and_model(page: Page, address: str, runs: dict[str, str]) -> None:
    run = f"{address}/#/experiments/{runs['experiment']}/runs/{runs['retrieved_demos']}"
    text = see(page, f"{run}/artifacts", shows("Artifacts", "rows.json", "program"), "mlflow_artifacts")
    assert {"model", "program", "notes.json", "rows.json"} <= set(text.split())
    overview = see(page, run, shows("About this run", "Parent run", "openings.openings"), "mlflow_run")
    assert ARMS["retrieved_demos"] in overview
    assert "size" in overview
    assert "seed" in overview
