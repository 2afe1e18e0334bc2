"""What people see of a comparison: real files of cells through the command line, the page in a real browser."""

import csv
import html
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import CHROMIUM, Page, chromium
from processes import UNTRACKED
from stores import HOSTILE, MADE, write_experiment, write_store

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import compare
from crossover.eval.analysis.gates import Gates, apply_gates, read_baseline
from crossover.eval.analysis.sweep import verdicts_by_volume
from crossover.eval.cli.main import main
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Experiment, Needs, Prices
from crossover.eval.report.curves import learning_curves
from crossover.eval.report.data import ReportData, checks, ledger
from crossover.eval.report.examples import disagreements, label_lines
from crossover.eval.report.figures import hue_names, learning_figure
from crossover.eval.report.markdown import MOST, markdown
from crossover.eval.report.page import html_page
from crossover.eval.report.text import cut, visible
from crossover.eval.run.loading import finished


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data, experiment file and a store of ten finished cells."""
    folder = tmp_path_factory.mktemp("support")
    write_store(write_experiment(folder), folder / "mlruns")
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> ReportData:
    """Return the data of a report on that folder."""
    experiment, _ = read_experiment(folder / "support.yaml")
    assert experiment is not None
    return data_of(folder, experiment)


def data_of(folder: Path, experiment: Experiment) -> ReportData:
    found = finished(experiment, store=folder / "mlruns")
    comparison = compare(
        found.results, needs=experiment.needs, prices=experiment.prices, experiment=experiment.name, unit="all"
    )
    return ReportData(replace(experiment, command="crossover run support.yaml"), comparison, found)


def report(folder: Path, *flags: str) -> int:
    return main(["report", str(folder / "support.yaml"), "--store", str(folder / "mlruns"), *flags])


def test_every_form_is_written_and_the_store_is_left_alone(folder: Path, tmp_path: Path) -> None:
    before = {f: f.read_bytes() for f in (folder / "mlruns").rglob("*") if f.is_file()}
    names = ["r.html", "r.md", "r.json", "r.csv", "r.xml", "r.txt"]
    assert report(folder, *(word for n in names for word in ("-o", str(tmp_path / n)))) == 0
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(names)
    assert {f: f.read_bytes() for f in (folder / "mlruns").rglob("*") if f.is_file()} == before
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    data = json.loads((tmp_path / "r.json").read_text())
    assert [r["name"] for r in rows] == [a["name"] for a in data["arms"]]
    assert [float(r["score_mean"]) for r in rows] == [a["score"]["mean"] for a in data["arms"]]
    assert sum(r["chosen"] == "True" for r in rows) == 1


def test_report_prints_what_run_would_print(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(folder) == 0
    assert "experiment support" in capsys.readouterr().out
    flags = ["run", str(folder / "support.yaml"), "--store", str(folder / "mlruns"), "--no-progress", "--json"]
    assert main([*flags, *UNTRACKED]) == 0
    ran = json.loads(capsys.readouterr().out)
    assert report(folder, "-o", str(folder / "again.json")) == 0
    assert json.loads((folder / "again.json").read_text()) == ran


def test_run_writes_the_page_as_well(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--store", str(folder / "mlruns"), "--no-progress", *UNTRACKED, "-o", str(tmp_path / "r.html")]
    assert main(["run", str(folder / "support.yaml"), *flags]) == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_a_run_writes_its_page_beside_the_store_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, store = folder / "support.html", folder / "mlruns"
    page.unlink(missing_ok=True)
    flags = ["run", str(folder / "support.yaml"), "--store", str(store), "--no-progress", *UNTRACKED]
    assert main(flags) == 0
    assert f"wrote {page}: open it in a browser\n" in capsys.readouterr().err
    written = page.stat().st_mtime_ns
    assert main(flags) == 0
    assert f"the page of this run: {page}\n" in capsys.readouterr().err
    assert page.stat().st_mtime_ns == written


def test_a_report_of_the_last_run_says_how_it_was_run(tmp_path: Path) -> None:
    file, store = str(tmp_path / "support.yaml"), ["--store", str(tmp_path / "mlruns")]
    write_store(write_experiment(tmp_path), tmp_path / "mlruns")
    assert main(["run", file, "--set", "needs.min_score=0.1", *store, "--no-progress", *UNTRACKED]) == 0
    assert main(["report", *store, "-o", str(tmp_path / "r.md"), "-o", str(tmp_path / "r.html")]) == 0
    command = f"crossover run {file} --set needs.min_score=0.1"
    assert [command in (tmp_path / name).read_text() for name in ("r.md", "r.html")] == [True, True]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "r.xls"], "error: -o r.xls: no form for .xls; use .html, .md, .json, .csv, .xml, .txt\n"),
        (["-o", "nowhere/r.md"], "error: -o nowhere/r.md: no folder nowhere; make it first\n"),
        (["--limit", "7"], "none of the 10 cells of 'support' is finished (10 of other settings are); give the same"),
        (["--baseline", "no.json"], "error: --baseline no.json: no such file; give a file that `crossover run --json`"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_exit_2(
    flags: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(folder, *flags) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_partial_table_is_said_to_be_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(write_experiment(tmp_path), tmp_path / "mlruns", only=["zero_shot", "sft"])
    assert report(tmp_path, "-o", str(tmp_path / "r.xml")) == 0
    assert "warning: 4 of 10 cells are finished: the table is partial" in capsys.readouterr().err
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    assert suite.get("failures") == "1"
    assert [f.text for f in suite.iter("failure")] == ["6 of 10 cells are not finished"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--fail-under", "0.7"], 0, ""),
        (["--fail-under", "0.9"], 1, "gate failed: intents: best score 0."),
        (["--fail-on-inconclusive"], 0, ""),
    ],
)
def test_gates_decide_the_exit_code(
    flags: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(folder, *flags) == code
    assert capsys.readouterr().err.startswith(message)


def test_every_gate_is_a_test_case(folder: Path, tmp_path: Path) -> None:
    assert report(folder, "--fail-under", "0.9", "--fail-on-inconclusive", "-o", str(tmp_path / "r.xml")) == 1
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    cases = {c.get("name"): c.find("failure") is not None for c in suite}
    assert cases["gate --fail-under"] is True
    assert cases["gate --fail-on-inconclusive"] is False
    assert len(cases) == int(suite.get("tests", "0")) == 3 + 10 + 2
    assert suite.get("failures") == "1"


def test_a_baseline_holds_until_an_arm_is_significantly_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now, then = tmp_path / "now", tmp_path / "then"
    for place, worse in ((now, 0.25), (then, 0.0)):
        place.mkdir()
        write_store(write_experiment(place), place / "mlruns", only=["zero_shot", "sft"], worse=worse)
    assert report(then, "-o", str(tmp_path / "then.json")) == 0
    assert report(now, "-o", str(tmp_path / "now.json")) == 0
    assert report(then, "--baseline", str(tmp_path / "now.json")) == 0
    capsys.readouterr()
    # The store holds the same cells, measured again: they are not what the baseline was.
    assert report(now, "--baseline", str(tmp_path / "then.json")) == 1
    assert "from the two intervals" in capsys.readouterr().err


def test_a_barred_arm_passes_no_gate(data: ReportData, folder: Path) -> None:
    best = max(data.comparison.arms, key=lambda a: a.score.mean)
    barred = [replace(a, integrity=("leaks",)) if a is best else a for a in data.comparison.arms]
    among = replace(data.comparison, arms=tuple(barred))
    gate = Gates(fail_under=best.score.mean)
    for comparison, passed in ((data.comparison, True), (among, False)):
        assert [o.passed for o in apply_gates(gate, comparison, store=folder / "mlruns")] == [passed]


def test_a_baseline_in_the_store_is_compared_by_example(data: ReportData, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    assert report(folder, "-o", str(file)) == 0
    outcomes = apply_gates(Gates(baseline=read_baseline(file)), data.comparison, store=folder / "mlruns")
    assert len(outcomes) == 10
    assert all(o.passed and "paired by example" in o.detail and "+0.000" in o.detail for o in outcomes)


def test_a_run_of_the_store_is_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = tmp_path / "support.yaml", ["--store", str(tmp_path / "mlruns"), "--no-progress", *UNTRACKED]
    write_store(write_experiment(tmp_path), tmp_path / "mlruns")
    assert main(["run", str(file), *store]) == 0
    named = ["--set", "name=later", *store]
    assert main(["run", str(file), "--baseline", "support", "-o", str(tmp_path / "r.xml"), *named]) == 0
    assert (tmp_path / "r.xml").read_text().count("--baseline ") == 10
    capsys.readouterr()
    assert main(["run", str(file), "--baseline", "support", *store]) == 2
    assert "--baseline support: this run takes the place of the last one of its name; keep" in capsys.readouterr().err
    assert main(["run", str(file), "--baseline", "other", *store]) == 2
    assert "no run is named 'other'; use one of later, support" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 7}, "schema_version 7 is not 1 or 2"),
        ({"arms": [{"task": "intents"}]}, "not a comparison (KeyError: 'score')"),
        ({"arms": []}, "no arm of this comparison"),
    ],
)
def test_a_baseline_that_does_not_compare_is_refused(
    change: dict[str, Any], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "b.json"
    report(folder, "-o", str(file))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert report(folder, "--baseline", str(file)) == 2
    assert message in capsys.readouterr().err


def test_a_baseline_of_another_split_fails_after_the_files_are_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "b.json", tmp_path / "r.md"
    report(folder, "-o", str(file))
    document = json.loads(file.read_text()) | {"split_sha256": {"intents": "f" * 64}}
    file.write_text(json.dumps(document))
    assert report(folder, "--baseline", str(file), "-o", str(page)) == 1
    assert "the split was ffffffffffff and is " in capsys.readouterr().err
    assert page.exists()


def test_the_verdict_of_each_volume_is_that_of_the_rules(data: ReportData) -> None:
    verdict = data.comparison.verdicts[0]
    found = verdicts_by_volume(data.comparison, verdict, data.experiment.needs)
    assert [s.volume for s in found][:2] == [None, 1000.0]
    assert all(b.volume > a.volume for a, b in pairwise(found[1:]) if a.volume and b.volume)
    assert found[0].verdict == verdict
    assert {s.verdict.choose for s in found} == {"sft rank=16, n=1024", "retrieved_demos demos=8, n=1024"}
    for s in found[1::6]:
        again = compare(
            data.finished.results, needs=Needs(volume_per_month=s.volume), prices=Prices(2.5), experiment="x"
        )
        assert again.verdicts[0] == s.verdict


def test_a_stated_volume_is_where_the_slider_stands(folder: Path, data: ReportData) -> None:
    stated = replace(data.experiment, needs=Needs(volume_per_month=12_345))
    comparison = data_of(folder, stated).comparison
    found = verdicts_by_volume(comparison, comparison.verdicts[0], stated.needs)
    assert [s.volume for s in found if s.stated] == [12_345]
    assert None not in [s.volume for s in found]


def test_two_train_sizes_have_a_figure_but_no_crossover(data: ReportData) -> None:
    results = [r for r in data.finished.results if r.cell.train_size != 256]
    comparison = compare(results, needs=Needs(), prices=Prices(2.5), experiment="support")
    fewer = replace(data, comparison=comparison)
    assert {c.name: len(c.arms) for c in learning_curves(fewer, "intents") if not c.constant} == {
        "few_shot demos=4": 2,
        "retrieved_demos demos=8": 2,
        "sft rank=16": 2,
    }
    page = html_page(fewer)
    assert "Score against training examples" in page
    assert "crossovers\n    computed, from three train sizes of one method on" in page
    assert 'class="sizes crossovers"' not in page


def test_learning_curves_are_drawn_with_bands_and_the_sizes_where_one_overtakes(data: ReportData) -> None:
    found = data.comparison.learning["intents"]
    curves = learning_curves(data, "intents")
    arms = {a.name: a for a in data.arms("intents")}
    figure = learning_figure(curves, hue_names(list(arms.values())), found.crossovers)
    assert [line.name for line in figure.lines] == [c.name for c in found.curves] + ["zero_shot"]
    assert len(figure.areas) == len(curves) == 4
    assert all(p.low <= p.score <= p.high for c in found.curves for p in c.line)
    (ring,) = [d for d in figure.dots if d.shape == "ring" and d.tip[1] == "overtakes retrieved_demos demos=8"]
    size = next(x.size for x in found.crossovers if x.context == "retrieved_demos demos=8")
    assert size.value is not None
    assert size.low is not None
    assert ring.left == figure.x.at(size.value)
    assert ring.width is not None
    assert ring.width[0] == figure.x.at(size.low)
    assert all(
        abs(figure.y.at(p.score) - ring.bottom) < 15
        for c in found.curves
        for p in c.line
        if abs(p.size - size.value) < 40 and c.name in ("sft rank=16", "retrieved_demos demos=8")
    )
    page = html_page(data)
    assert 'class="sizes crossovers"' in page
    assert f'<td class="n">{size.value:,.0f}</td>' in page


def test_a_p95_of_few_requests_is_a_least_one_in_head_and_table(data: ReportData) -> None:
    def hurried(arm: Arm) -> Arm:
        return replace(arm, latency=replace(arm.latency, p95=replace(arm.latency.p95, low=980.0, high=math.inf)))

    arms = tuple(map(hurried, data.comparison.arms))
    page = html_page(replace(data, comparison=replace(data.comparison, arms=arms)))
    assert "<dt>p95 latency</dt><dd>≥980 ms</dd>" in page
    assert page.count("≥980 ms</td>") == len(arms)


def test_labels_stand_beside_their_frequency(data: ReportData) -> None:
    arms = data.arms("intents")
    lines = label_lines(data, "intents", arms)
    assert [(x.label, x.test) for x in lines[:2]] == [("card_lost", 250), ("refund_late", 150)]
    weighted = [sum(x.test * (x.scores[n] or 0.0) for x in lines) / 600 for n in range(len(arms))]
    assert weighted == pytest.approx([a.score.mean for a in arms])


def test_examples_of_disagreement_are_drawn_alike_every_time(data: ReportData) -> None:
    arms = data.arms("intents")[:2]
    samples, count = disagreements(data, "intents", arms)
    assert len(samples) == 24
    assert count == sum(arms[0].scores[i] != arms[1].scores[i] for i in arms[0].scores)
    assert all({a.score for a in d.answers.values()} == {0.0, 1.0} for d in samples)
    assert disagreements(data, "intents", arms) == (samples, count)


def test_the_ledger_adds_up(data: ReportData) -> None:
    lines = {x.arm: x for x in ledger(data, "intents")}
    sft = lines["sft rank=16, n=1024"]
    seconds = MADE["sft"].fit_seconds[-1] + MADE["sft"].serve_seconds
    assert sft.paid_usd == pytest.approx(seconds / 3600 * 2.5)
    assert sft.kinds.training == sft.cost.fit == pytest.approx(MADE["sft"].fit_seconds[-1] / 3600 * 2.5)
    assert sft.test_usd == pytest.approx(MADE["sft"].serve_seconds / 3600 * 2.5)
    assert (sft.kinds.optimizer, sft.kinds.teacher, sft.kinds.discarded) == (0, 0, 0)
    few = lines["few_shot demos=4, n=256"]
    assert (few.kinds.training, few.kinds.optimizer) == (0, few.cost.fit)
    assert few.per_1k_correct == pytest.approx((few.cost.per_1k_requests or 0) / arm_score(data, few.arm))


def arm_score(data: ReportData, name: str) -> float:
    return next(a.score.mean for a in data.arms("intents") if a.name == name)


def test_labels_and_hosting_are_lines_of_the_page(data: ReportData) -> None:
    prices = Prices(machine_hour_usd=2.5, label_usd=0.1, tuned_hosting_usd_per_month=70)
    dear = replace(data.experiment, prices=prices)
    results = data.finished.results
    comparison = compare(results, needs=dear.needs, prices=prices, experiment="support")
    page = html_page(replace(data, experiment=dear, comparison=comparison))
    table = re.sub(r"<[^>]+>", " ", page[page.index('class="ledger"') :])
    assert "hosting" in table
    assert "$70" in table
    sft = next(x for x in ledger(replace(data, experiment=dear, comparison=comparison), "intents") if "sft" in x.arm)
    assert sft.kinds.labels > 0
    assert sft.cost.fit == pytest.approx(sft.kinds.labels + (sft.kinds.training or 0))


def test_a_broken_rule_fails_its_check(data: ReportData) -> None:
    arms = tuple(replace(a, integrity=("zero-shot shows demonstrations",)) for a in data.comparison.arms[:1])
    comparison = replace(data.comparison, arms=arms + data.comparison.arms[1:])
    broken = replace(data, comparison=comparison)
    assert [c.failure for c in checks(broken, "intents") if c.failure] == ["zero-shot shows demonstrations"]
    assert "❌ zero\\_shot" in markdown(broken)


def test_doubts_about_the_data_are_shown(data: ReportData) -> None:
    doubtful = replace(data.comparison, cautions={"intents": ("seeds are < 3",)})
    again = replace(data, comparison=doubtful)
    assert "<li>seeds are &lt; 3</li>" in html_page(again)
    assert "\n- seeds are &lt; 3\n" in markdown(again)


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible("a\x00b\x1b\u202e\u200b\ud800\n\t") == "a⟨U+0000⟩b⟨U+001B⟩⟨U+202E⟩⟨U+200B⟩⟨U+D800⟩\n\t"
    assert cut("x" * 30, 10) == "x" * 10 + "… (20 more characters)"


def test_the_comment_fits_and_shows_data_as_text(data: ReportData) -> None:
    text = markdown(data)
    assert len(text) < MOST
    assert text.count("<details>") == text.count("</details>") == 6
    outside = re.sub(r"``[^\n]*``|`[^`]*`", "", text)
    assert "<script" not in outside
    assert "@someone" not in outside
    assert "\x1b" not in text
    assert "\u202e" not in text
    rows = [line for line in text.splitlines() if line.startswith("| **sft")]
    assert len(rows) == 1


def test_a_comment_leaves_out_what_does_not_fit_and_says_so(data: ReportData) -> None:
    text = markdown(replace(data, experiment=replace(data.experiment, command="x" * MOST)))
    assert len(text) < MOST
    assert "1 sections do not fit a comment" in text
    assert "paired differences" in text


def test_the_page_is_one_safe_file_and_the_same_every_time(data: ReportData) -> None:
    text = html_page(data)
    assert text == html_page(data)
    assert len(text.encode()) < 2_000_000
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; ⟨U+001B⟩[31mred⟨U+202E⟩" in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:,)""", text)
    assert "default-src 'none'" in html.unescape(text)
    assert text.count('<figure class="plot"') == 3


def test_an_unpriced_or_unscored_arm_has_a_page_too(folder: Path, data: ReportData) -> None:
    results = [replace(r, rows=[replace(x, usd=None) for x in r.rows], local=False) for r in data.finished.results]
    results[0] = replace(results[0], rows=[replace(x, score=None, failure="lm: gone") for x in results[0].rows])
    comparison = compare(results, needs=Needs(), prices=Prices(), experiment="x")
    found = replace(data.finished, results=tuple(results))
    text = html_page(replace(data, comparison=comparison, finished=found))
    assert "unpriced" in text
    assert "barred" in text
    assert "nan" not in text.lower().replace("finance", "")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Return a page of a real browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def file(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page as a file."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html_page(data), encoding="utf-8")
    return file


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_offline_without_complaint_and_fits(page: Page, file: Path, width: int, dark: bool) -> None:
    page.open(file, width=width, dark=dark)
    assert page.complaints == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelectorAll('.plot').length") == 3
    assert page.run("document.querySelector('h2').innerText").startswith("Use sft")
    red, *_ = (int(n) for n in re.findall(r"\d+", page.run("getComputedStyle(document.body).backgroundColor")))
    assert (red < 60) == dark


def test_the_slider_changes_the_verdict(page: Page, file: Path) -> None:
    page.open(file)
    move = """(index => {{ const slider = document.querySelectorAll('input[type=range]')[{which}];
        slider.value = index; slider.dispatchEvent(new Event('input', {{bubbles: true}})); }})({index})"""
    shown = "[...document.querySelectorAll('.state')].filter(s => s.offsetParent).map(s => s.innerText)"
    line = "getComputedStyle(document.querySelector('.now')).left"
    seen = []
    for which, index in ((0, 1), (1, 9), (0, 0)):
        page.run(move.format(which=which, index=index))
        (text,) = page.run(shown)
        place = float(page.run(line).removesuffix("px"))
        seen.append((text.partition("\n")[0], page.run("document.querySelector('output').textContent"), place))
    assert seen[0] == ("Use retrieved_demos", "1,000", 0)
    assert seen[1][:2] == ("Use sft", "500,000")
    assert seen[1][2] > 100
    assert seen[2][0] == "Use sft"
    assert seen[2][2] < 0
    assert page.complaints == []


def test_the_toggle_turns_figures_dark_as_well(page: Page, file: Path) -> None:
    page.open(file)
    ink = "getComputedStyle(document.querySelector('.plot .x span')).color"
    before = page.run(ink)
    page.run("document.getElementById('theme').click()")
    assert page.run("getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert page.run(ink) != before


def test_hostile_data_is_text(page: Page, file: Path) -> None:
    page.open(file)
    assert visible(HOSTILE) in page.run("document.querySelector('.grid').textContent")
    assert page.run("document.querySelectorAll('.grid script').length") == 0


def test_the_filter_shows_examples_that_one_arm_answers_right_and_another_wrong(page: Page, file: Path) -> None:
    page.open(file)
    choose = """((side, arm) => {{ const select = document.querySelector(`[data-side={side}]`);
        select.value = {arm}; select.dispatchEvent(new Event('change')); }})()"""
    rows = "[...document.querySelectorAll('.grid tbody tr')].filter(r => r.offsetParent)"
    classes = f"{rows}.map(r => [1, 2].map(n => r.querySelector(`[data-arm='${{n}}']`).className))"
    everything = page.run(classes)
    page.run(choose.format(side="right", arm=1))
    page.run(choose.format(side="wrong", arm=2))
    wanted = [pair for pair in everything if pair == ["right", "wrong"]]
    assert 0 < len(wanted) < len(everything) == 24
    assert page.run(classes) == wanted
    assert page.run("document.querySelector('.filter output').textContent") == f"{len(wanted)} of 24 shown"
    page.run(choose.format(side="right", arm="''"))
    page.run(choose.format(side="wrong", arm="''"))
    assert page.run(classes) == everything


def test_a_click_on_an_answer_shows_what_came_back(page: Page, file: Path) -> None:
    page.open(file)
    assert page.run("[...document.querySelectorAll('.answer')].filter(a => a.offsetParent).length") == 0
    page.run("document.querySelector('.grid td button').click()")
    text = page.run("document.querySelector('.answer:popover-open').innerText")
    assert "raw answer" in text
    assert re.search(r"crossover show [0-9a-f]{12} test-\d+", text)
    page.run("document.querySelector('.answer:popover-open > button').click()")
    assert page.run("document.querySelector('.answer:popover-open')") is None


def test_the_report_is_copied_as_markdown(page: Page, file: Path, data: ReportData) -> None:
    page.open(file)
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.run("document.querySelector('[data-copy=markdown]').click()")
    assert page.run("navigator.clipboard.readText()").splitlines() == visible(markdown(data)).splitlines()
