"""Variants of one method: val chooses the one that stands for it, test reports it; `compare: all` takes them all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import make_cell, make_result, right
from openings import write_openings
from processes import UNTRACKED

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.cli.main import main
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Compare, Needs, Prices, families_with_variants
from crossover.eval.report.table import render
from crossover.eval.store.result import Result
from crossover.models.usage import Usage

PRICES = Prices(machine_hour_usd=3.60)


def judge(*results: Result, unit: Compare = "methods", **needs: float) -> Comparison:
    return compare(results, needs=Needs(**needs), prices=PRICES, experiment="x", unit=unit)


def sft(size: int, correct: int, *, seed: int = 0, shift: int = 0, **options: Any) -> Result:
    return make_result(make_cell("sft", size=size, seed=seed), right(correct, 300, shift=shift), **options)


def few(demos: int, correct: int, *, size: int | None = None, **options: Any) -> Result:
    return make_result(make_cell("few_shot", size=size, options={"demos": demos}), right(correct, 300), **options)


GRID = (
    few(2, 150, size=64, val=0.55),
    few(8, 170, size=64, val=0.50),
    sft(64, 180, val=0.60),
    sft(256, 240, val=0.80),
    sft(1024, 246, val=0.78),
)


def test_methods_are_contrasted_by_the_variants_that_val_chose() -> None:
    comparison = judge(*GRID)
    assert comparison.compared == {"intents": ("few_shot demos=2, n=64", "sft, n=256")}
    assert [(c.a, c.b) for c in comparison.contrasts] == [("sft, n=256", "few_shot demos=2, n=64")]
    # One pair: nothing to adjust for.
    assert comparison.contrasts[0].p_holm == comparison.contrasts[0].difference.p
    verdict = comparison.verdicts[0]
    assert verdict.choose == "sft, n=256"
    assert "Val chose it among 3 variants of sft, with 0.80." in verdict.because
    assert len(comparison.arms) == 5
    text = " ".join(render(comparison).split())
    assert "variants of one method: 2 of few_shot, 3 of sft. The one that scores best on val stands" in text


def test_compare_all_makes_every_variant_an_arm() -> None:
    comparison = judge(*GRID, unit="all")
    assert len(comparison.contrasts) == 10
    assert comparison.verdicts[0].choose == "sft, n=1024"
    assert not any("on val" in caution for caution in comparison.cautions["intents"])


def test_variants_without_scores_on_val_are_compared_as_arms_and_said_to_be() -> None:
    comparison = judge(*GRID[:3], replace(GRID[3], facts=replace(GRID[3].facts, val_score=None)))
    assert comparison.compared["intents"] == ("few_shot demos=2, n=64", "sft, n=64", "sft, n=256")
    assert any("the variants of sft have no scores on val" in c for c in comparison.cautions["intents"])


def test_knowledge_and_models_make_families_of_their_own() -> None:
    cells = [make_cell("sft", size=n, knowledge=k) for n in (64, 256) for k in ("gold", "noisy")]
    results = [make_result(c, right(200 + n, 300), val=0.5 + n / 10) for n, c in enumerate(cells)]
    assert judge(*results).compared["intents"] == ("sft, n=256, gold", "sft, n=256, noisy")


def test_seeds_are_no_variants_and_their_mean_on_val_counts() -> None:
    small = [sft(64, 200, seed=s, val=v) for s, v in ((0, 0.9), (1, 0.3))]
    large = [sft(256, 200, seed=s, val=0.7) for s in (0, 1)]
    assert judge(*small).compared["intents"] == ("sft",)
    assert judge(*small, *large).compared["intents"] == ("sft, n=256",)


def test_a_variant_that_misses_a_need_stands_back_for_one_that_meets_it() -> None:
    slow, quick = few(8, 250, val=0.9, ms=900.0), few(2, 240, val=0.8)
    assert judge(slow, quick).compared["intents"] == ("few_shot demos=8",)
    assert judge(slow, quick, max_p95_ms=100).verdicts[0].choose == "few_shot demos=2"
    # The score on test bars no variant before val has chosen.
    assert judge(few(8, 30, val=0.9), quick, min_score=0.5).verdicts[0].choose is None


def test_of_equal_scores_on_val_the_cheaper_variant_is_taken() -> None:
    dear, cheap = sft(1024, 250, val=0.8, fit=Usage(seconds=9000)), sft(64, 240, val=0.8, fit=Usage(seconds=90))
    assert judge(dear, cheap).compared["intents"] == ("sft, n=64",)


def test_only_families_of_several_variants_are_scored_on_val(tmp_path: Path) -> None:
    file = write_openings(tmp_path, "[zero_shot, few_shot: {demos: 2}, few_shot: {demos: 4}]", more="seeds: [0, 1]\n")
    experiment, problems = read_experiment(file)
    assert experiment is not None
    assert not problems
    assert {family[2] for family in families_with_variants(experiment)} == {"few_shot"}
    assert families_with_variants(replace(experiment, compare="all")) == set()
    assert {f[2] for f in families_with_variants(replace(experiment, train_sizes=(8, 16)))} == {"few_shot"}


def test_a_wrong_unit_is_refused_with_what_there_is(tmp_path: Path) -> None:
    file = write_openings(tmp_path, "[zero_shot]", more="compare: method\n")
    assert [str(p) for p in read_experiment(file)[1]] == [
        "error: openings.yaml:10: unknown value of `compare` `method`; did you mean `methods`?"
    ]


def run(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Run an experiment; return its JSON, and the result of each cell by key."""
    store = file.parent / "mlruns"
    assert main(["run", str(file), "--store", str(store), *UNTRACKED, "-q", "--json"]) == 0
    results = [json.loads(f.read_text()) for f in store.glob("cells/*/result.json")]
    return json.loads(capsys.readouterr().out), {r["key"]: r for r in results}


def test_a_run_scores_variants_on_val_and_charges_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, several = "[retrieved_demos: {demos: 3}]", "[retrieved_demos: {demos: 3}, retrieved_demos: {demos: 1}]"
    data, before = run(write_openings(tmp_path, one), capsys)
    (first,) = data["arms"]
    assert "val_score" not in before[first["cells"][0]]["notes"]
    # A variant is added: the cell that is there is scored on val, and none of its rows is asked again.
    data, after = run(write_openings(tmp_path, several), capsys)
    assert all(0 <= r["notes"]["val_score"] <= 1 for r in after.values())
    assert after[first["cells"][0]]["fit"]["calls"] == before[first["cells"][0]]["fit"]["calls"] + 12
    assert [a["score"] for a in data["arms"] if a["cells"] == first["cells"]] == [first["score"]]
    assert {r["notes"]["labels_used"] for r in after.values()} == {48 + 12}
    assert data["contrasts"] == []
    assert run(tmp_path / "openings.yaml", capsys)[0] == data
