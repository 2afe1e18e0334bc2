"""What a run would take, held against what it took."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
import tiny

from crossover.eval.cli.main import main
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Experiment, Knowledge, plan
from crossover.eval.run.calibration import Calibration, TimedPart, likely_lines
from crossover.eval.run.forecast import Forecast, expected_shares, forecast, forecast_table
from crossover.eval.run.loading import finished
from crossover.eval.run.methods import method_of
from crossover.eval.store.timings import Timed, read_timed
from crossover.models.spec import ModelSpec
from crossover.programs.spec import TaskSpec


@pytest.fixture
def openings(openings_run: Path) -> Experiment:
    experiment, _ = read_experiment(openings_run / "openings.yaml")
    assert experiment is not None
    return experiment


def test_what_is_foretold_is_what_it_takes_at_most(openings: Experiment, openings_run: Path, store: Path) -> None:
    cells, done = forecast(openings, store=store)
    assert done == 0
    assert not store.exists()
    took = finished(openings, store=openings_run / "mlruns").results
    assert len(cells) == len(took) == 3
    for told, result in zip(cells, took, strict=True):
        rows = [r for r in result.rows if not r.failure]
        real = sum(r.prompt_tokens for r in rows) / len(rows)
        # Demonstrations that are chosen for a question are a little longer or shorter than those that were counted.
        assert told.prompt_tokens / told.calls == pytest.approx(real, rel=0.15)
        assert told.answer_tokens >= sum(r.completion_tokens for r in rows)
        assert told.train_tokens >= result.fit.train_tokens
        assert told.seconds is not None
        assert told.seconds > 0
        assert told.usd == pytest.approx(told.seconds / 3600 * openings.prices.machine_hour_usd)
    assert cells[2].train_tokens > 0 == cells[0].train_tokens
    table = forecast_table(cells)
    assert len(table) == 5
    assert f"{sum(c.prompt_tokens for c in cells):,}" in table[-1]


def test_finished_cells_take_nothing(openings: Experiment, openings_run: Path) -> None:
    assert forecast(openings, store=openings_run / "mlruns") == ([], 3)
    more = replace(openings, seeds=(0, 1))
    cells, done = forecast(more, store=openings_run / "mlruns")
    assert (len(cells), done) == (2, 3)  # the untrained arm has one seed


def test_an_api_is_priced_and_not_asked(openings: Experiment, store: Path) -> None:
    models = (ModelSpec("openai/gpt-4o-mini", api_base="http://127.0.0.1:9"), ModelSpec("openai/nobody-prices-this"))
    cells, _ = forecast(replace(openings, models=models, methods=openings.methods[:2]), store=store)
    assert [c.seconds for c in cells] == [None] * 4
    priced, unpriced = cells[:2], cells[2:]
    assert all(c.usd and c.usd > 0 for c in priced)
    assert priced[0].usd < priced[1].usd  # demonstrations make a prompt longer
    assert [c.usd for c in unpriced] == [None, None]
    assert forecast_table(cells)[-1].endswith("unpriced")


def test_the_choice_of_a_prompt_format_has_a_line_of_its_own(openings: Experiment, store: Path) -> None:
    (model,) = openings.models
    cells, _ = forecast(replace(openings, models=(replace(model, prompt_format="auto"),)), store=store)
    assert [c.name.rpartition("  ")[2] for c in cells[:2]] == ["choosing among plain, json, chat", "zero_shot, seed=0"]
    assert cells[0].calls == 3 * 2 * 12  # formats, with and without demonstrations, val examples
    assert cells[0].seconds
    assert len(cells) == 4


def test_training_and_demonstrations_are_counted_with_what_train_reads(store: Path) -> None:
    experiment = Experiment(
        "reading",
        (TaskSpec("stdlib_rag"),),
        (tiny.SPEC,),
        (MethodSpec("few_shot", {"demos": 2}), MethodSpec("sft")),
        knowledge=(
            Knowledge("none", "none"),
            Knowledge("none", "gold"),
            Knowledge("gold", "none"),
            Knowledge("gold", "gold"),
        ),
        train_sizes=(8,),
        limit=5,
    )
    cells, _ = forecast(experiment, store=store)
    told = {c.name.partition("  ")[2]: c for c in cells}
    shown, trained = ([c for name, c in told.items() if method in name] for method in ("few_shot", "sft"))
    bare, closed, opened, full = (c.train_tokens for c in trained)
    assert bare == closed < opened == full
    bare, asked, demonstrated, full = (c.prompt_tokens / c.calls for c in shown)
    assert bare < asked < full
    assert bare < demonstrated < full


@pytest.mark.parametrize(
    ("method", "options", "epochs", "readings"),
    [
        ("sft", {"epochs": 2}, 2, 3),
        ("sft", {"epochs": 2, "mix": 0.5, "mix_file": "general.jsonl"}, 4, 3),
        # Each of 4 trials reads val before its training, after its first epoch and where it is judged; 2 go on.
        ("sft", {"epochs": 3, "search": {"trials": 4, "early": 0.5, "finish": 2}}, 9, 4 * 3 + 2 * 2),
        ("dpo", {"epochs": 2}, 4, 3),
        ("head", {"base": "frozen"}, 1, 5),
        ("head", {"base": "frozen", "ridge": 1.0}, 1, 1),
        ("head", {"base": "lora", "epochs": 3}, 3, 4),
    ],
)
def test_a_method_tells_what_its_trainings_take(
    method: str, options: dict[str, Any], epochs: float, readings: int
) -> None:
    work = method_of(method, options).workload(100)
    assert (work.epochs, work.readings) == (pytest.approx(epochs), readings)


def test_the_time_of_a_run_is_shared_out_by_what_each_cell_computes(openings: Experiment, openings_run: Path) -> None:
    found = finished(openings, store=openings_run / "mlruns")
    zero_shot, retrieved, sft = expected_shares(openings, plan(openings), found.tasks)
    assert zero_shot.fit < zero_shot.test == sft.test
    assert retrieved.test > zero_shot.test
    assert sft.fit > sft.test
    # A block that all prompts begin with is read once, demonstrations of each question every time.
    block = replace(openings, methods=(MethodSpec("many_shot", {"demos": 3}),))
    (many,) = expected_shares(block, plan(block), found.tasks)
    assert many.test < retrieved.test
    assert many.fit > zero_shot.fit
    # Answers of a label are short, and what is written before them is not.
    (name, task) = next(iter(found.tasks.items()))
    reasoning = replace(task, program=lambda: dspy.ChainOfThought(task.program().predictors()[0].signature))
    long, _, trained = expected_shares(openings, plan(openings), {name: reasoning})
    assert long.test > 2 * zero_shot.test
    assert long.test == trained.test


def test_a_forecast_is_scaled_by_what_earlier_runs_took(store: Path) -> None:
    store.mkdir()
    spec, calibration = ModelSpec("openai/gpt-4o-mini"), Calibration(store)
    assert calibration.line() == ""
    calibration.count(spec, 100.0, 20.0)
    assert calibration.line() == "note: took 20 s; `crossover plan` forecasts by it from now on"
    cell = Forecast("intents  gpt", 1, 1, 1, 0, None, None, spec.name, work=300.0)
    (line,) = likely_lines([cell], store, machine_hour_usd=3.6)
    assert line.startswith("likely 1 min 0 s, $0.060 of machine time, peak memory ")
    assert line.endswith("by earlier runs")
    again = Calibration(store)
    again.count(spec, 50.0, 8.0)
    assert again.line() == "note: forecast 10 s, took 8 s (-20%); the next one is scaled by it"
    (line,) = likely_lines([cell], store, machine_hour_usd=3.6)
    assert line.startswith("likely 56 s, ")
    assert line.endswith("by earlier runs; earlier forecasts erred by 20% (median)")
    # Workers count as if one machine had done all, and not at all where they are of another kind.
    parts = Calibration(store)
    kind = read_timed(store)[0].machine
    parts.count(spec, 10.0, 1.0, [TimedPart("another", 1.0, 1.0)])
    assert parts.line() == ""
    parts.count(spec, 10.0, 1.0, [TimedPart(kind, 2.0, 1e9), TimedPart(kind, 3.0, 1.0)])
    assert read_timed(store)[2:] == [Timed(kind, spec.name, 10.0, 6.0, read_timed(store)[-1].expected, 1e9)]
    # Another model was never timed.
    assert "likely" not in "".join(likely_lines([replace(cell, model="other")], store, machine_hour_usd=3.6))


def test_a_run_times_itself_for_the_next_plan(openings_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (timed,) = read_timed(openings_run / "mlruns")
    assert timed.expected is None
    assert min(timed.work, timed.seconds, timed.mib) > 0
    file, flags = str(openings_run / "openings.yaml"), ["--store", str(openings_run / "mlruns")]
    assert main(["plan", file, "--seeds", "0,1", *flags]) == 0
    assert "\nlikely " in capsys.readouterr().out
