"""What people see in MLflow's own pages: `crossover ui` over the store of a real run, in headless Chromium.

The clicks are those of docs/mlflow.md. One server and one browser serve all tests.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium
from mlflow_views import Views
from PIL import Image
from served_ui import served_ui

from crossover.eval.tracking.tracker import Tracker

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from pictures import ROOT, take_mlflow, take_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM: MLflow's pages are not looked at"),
]
ARMS = {"zero_shot": "zero_shot", "retrieved_demos": "retrieved_demos demos=3", "sft": "sft epochs=1 rank=4"}
"""Method to the name that its run has in MLflow."""


@pytest.fixture(scope="module")
def runs(openings_run: Path) -> dict[str, str]:
    """Return run ids by method, and `experiment`."""
    client = Tracker(openings_run / "mlruns").client
    experiment = client.get_experiment_by_name("openings").experiment_id
    found = client.search_runs([experiment], "tags.`crossover.kind` = 'cell'")
    return {r.data.params["method"]: r.info.run_id for r in found} | {"experiment": experiment}


@pytest.fixture(scope="module")
def views(openings_run: Path, runs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Views]:
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile) as page, served_ui(openings_run / "mlruns") as server:
        yield Views(page, server, runs["experiment"])


def test_three_clicks_lead_from_the_charts_to_the_answers(views: Views, runs: dict[str, str]) -> None:
    text = views.charts(len(ARMS))
    for shown in ("accuracy", "cost_usd_per_1k", "latency_p95_ms", "Sort: accuracy", "openings"):
        assert shown in text, shown
    # By age, which is the table's own order, sft would come first.
    assert min(ARMS.values(), key=text.index) == ARMS["retrieved_demos"]
    text = views.click("openings", "About this run", "USE retrieved_demos demos=3", "Confidence: ")
    assert "significantly better than the next" in text
    views.click(ARMS["retrieved_demos"], "About this run", "Parent run")
    assert "refund" in views.traces(runs["retrieved_demos"], words=["Response"])


def test_a_trace_opens_with_its_spans(views: Views, runs: dict[str, str], openings_run: Path) -> None:
    client, experiment, run = Tracker(openings_run / "mlruns").client, runs["experiment"], runs["retrieved_demos"]
    (trace,) = client.search_traces(locations=[experiment], run_id=run, max_results=1)
    assert trace.info.request_preview in views.trace(trace.info.trace_id)


def test_two_arms_stand_side_by_side_on_the_same_questions(views: Views, runs: dict[str, str]) -> None:
    words = ["compare to", "zero_shot"]
    assert ARMS["retrieved_demos"] in views.traces(runs["retrieved_demos"], beside=runs["zero_shot"], words=words)


def test_the_compare_view_sets_arms_side_by_side(views: Views, runs: dict[str, str]) -> None:
    text = views.compare([runs[m] for m in ARMS])
    keys = views.differences().split()
    # One key stands for all arms: no metric is named after one of them.
    for key in ("accuracy", "accuracy_low", "accuracy_high", "fit_usd", "detail/macro_f1", "latency_p95_ms"):
        assert key in keys, key
    assert "size\tall\tall\tall" in text
    assert "seed\t0\t0\t0" in text


def test_the_artifact_view_shows_program_rows_and_model(views: Views, runs: dict[str, str]) -> None:
    assert {"model", "program", "notes.json", "rows.json"} <= set(views.artifacts(runs["retrieved_demos"]).split())
    overview = views.run(runs["retrieved_demos"], "Parent run", "openings.openings")
    assert ARMS["retrieved_demos"] in overview
    assert "size" in overview
    assert "seed" in overview


def test_every_picture_of_the_documents_is_taken(views: Views, openings_run: Path, tmp_path: Path) -> None:
    take_page(views.page, openings_run / "openings.html", tmp_path)
    take_mlflow(views.page, views.server, openings_run / "mlruns", tmp_path)
    shown = {file.name for file in (ROOT / "docs" / "pictures").iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == shown
    for file in tmp_path.iterdir():
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert image.width == (1500 if file.name.startswith("mlflow") else int(file.name.split("-")[1]))
            # A blank page has one or two colours.
            assert len(image.getcolors() or ()) > 16, file.name
