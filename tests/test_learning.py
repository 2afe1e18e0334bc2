"""Learning curves: on simulated ones with a known limit and a known crossing."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from factories import make_cell, make_result

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.analysis.learning_words import learning_sentences
from crossover.eval.analysis.saturation import NEVER, crossover_size, fit_curves, flat, saturation_size
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.report.schema import to_json
from crossover.eval.report.table import render

SIZES = (64, 128, 256, 512, 1024)


def test_a_curve_without_noise_is_found_exactly() -> None:
    n = np.array(SIZES, float)
    truth = np.stack([0.9 - 2.0 * n**-0.5, 0.7 - 0.5 * n**-0.25, np.full(5, 0.4)])
    fit = fit_curves(SIZES, truth)
    assert fit.at(SIZES) == pytest.approx(truth, abs=2e-3)
    assert fit.limit == pytest.approx([0.9, 0.7, 0.4], abs=0.02)
    assert fit.drop[2] == pytest.approx(0, abs=1e-9)


def test_a_curve_that_starts_at_nothing_bends() -> None:
    n = np.array([64, 128, 256, 512, 1024, 2048, 4096, 8192], float)
    tuned, context = 0.9 - 0.9 / (1 + (n / 1200) ** 1.2), 0.85 - 0.8 / (1 + (n / 500) ** 0.7)
    fits = [fit_curves(list(n), truth[None]) for truth in (tuned, context)]
    assert fits[0].at(n)[0] == pytest.approx(tuned, abs=5e-3)
    assert fits[0].limit[0] == pytest.approx(0.9, abs=0.03)
    first = n[np.argmax(tuned > context)]
    assert first / 2 < crossover_size(*fits, list(n))[0] < first


def test_no_curve_passes_1_or_falls() -> None:
    fit = fit_curves(SIZES, np.array([[0.2, 0.4, 0.6, 0.8, 0.99], [0.9, 0.8, 0.7, 0.6, 0.5]]))
    assert fit.limit[0] <= 1
    assert (np.diff(fit.at(SIZES)) >= -1e-12).all()
    with pytest.raises(ValueError, match="2 sizes: a curve with a limit needs three"):
        fit_curves((64, 128), np.ones((1, 2)))


def test_doubling_stops_paying_where_it_does() -> None:
    n = np.array(SIZES, float)
    fit = fit_curves(SIZES, (0.9 - 2.0 * n**-0.5)[None])
    size = saturation_size(fit, 0.01, SIZES)[0]
    assert size == pytest.approx((2.0 * (1 - 2**-0.5) / 0.01) ** 2, rel=0.1)
    curve = fit.at([size, 2 * size])[0]
    assert curve[1] - curve[0] == pytest.approx(0.01, abs=1e-6)
    assert saturation_size(flat(np.array([0.5])), 0.01, SIZES)[0] == 64


def test_the_crossing_is_where_the_curves_cross() -> None:
    n = np.array(SIZES, float)
    tuned = fit_curves(SIZES, (0.95 - 4.0 * n**-0.5)[None])
    assert crossover_size(tuned, flat(np.array([0.75])), SIZES)[0] == pytest.approx(400, rel=0.05)
    assert crossover_size(tuned, flat(np.array([0.1])), SIZES)[0] == 64
    assert crossover_size(tuned, flat(np.array([0.96])), SIZES)[0] == NEVER


def invented(tuned: Callable[[int], float], *, zero: float, seeds: int = 3, examples: int = 500) -> Comparison:
    """Return the comparison of arms whose examples are right with a known chance."""
    rng, results = np.random.default_rng(7), []

    def scores(chance: float) -> list[float]:
        return [float(x) for x in rng.random(examples) < chance]

    results.append(make_result(make_cell("zero_shot"), scores(zero)))
    for n in SIZES:
        for seed in range(seeds):
            results.append(make_result(make_cell("many_shot", size=n, seed=seed), scores(0.75)))
            results.append(make_result(make_cell("sft", size=n, seed=seed), scores(tuned(n))))
    return compare(results, needs=Needs(), prices=Prices(), experiment="invented")


def test_the_interval_holds_the_true_crossing() -> None:
    comparison = invented(lambda n: 0.95 - 4.0 * n**-0.5, zero=0.3)
    learning = comparison.learning["intents"]
    found = {(o.weights, o.context): o.size for o in learning.crossovers}
    cross = found["sft", "many_shot"]
    assert cross.low is not None
    assert cross.high is not None
    # 400 lies between 256 and 512; the samples leave a size more open on either side.
    assert cross.low < 400 < cross.high
    assert (cross.low, cross.value, cross.high) == (128, 512, 1024)
    assert found["sft", "zero_shot"].value is not None
    assert found["sft", "zero_shot"].value < 100
    curve = next(c for c in learning.curves if c.name == "sft")
    assert curve.limit[1] < 0.95 < curve.limit[2]
    assert learning.warnings == ()


def test_curves_stand_in_the_table_and_in_the_json() -> None:
    comparison = invented(lambda n: 0.6, zero=0.3)
    assert "sft does not overtake many_shot up to 4 times the sizes measured" in " ".join(render(comparison).split())
    data = json.loads(json.dumps(to_json(comparison)))["learning"]["intents"]
    assert {c["name"] for c in data["curves"]} == {"many_shot", "sft"}
    assert next(o for o in data["crossovers"] if o["context"] == "many_shot")["size"]["value"] is None
    assert len(learning_sentences(comparison.learning["intents"])) == 4


def test_what_is_ahead_throughout_and_what_never_stops_paying_is_said() -> None:
    learning = invented(lambda n: 0.05 * math.log2(n) + 0.3, zero=0.1).learning["intents"]
    said = " ".join(learning_sentences(learning))
    assert "sft is ahead of zero_shot from the smallest size on, 64 [64, 64] examples" in said
    assert "doubling buys a point up to 4 times the sizes measured [" in said
    ahead = {o.context: (o.throughout, o.beyond) for o in learning.crossovers}
    assert ahead == {"zero_shot": (True, False), "many_shot": (False, False)}


def test_a_crossing_lies_between_the_sizes_whose_signs_say_so_whatever_law_is_fitted() -> None:
    # At 0.3 up to 256 examples, at 0.9 from 512 on: no law of the fitted form bends so.
    learning = invented(lambda n: 0.9 if n > 256 else 0.3, zero=0.6).learning["intents"]
    sft = next(c for c in learning.curves if c.name == "sft")
    assert (sft.limit, sft.enough, sft.line) == (None, None, ())
    crossing = next(x for x in learning.crossovers if x.context == "zero_shot")
    assert (crossing.after, crossing.size.low, crossing.size.value, crossing.size.high) == (256, 256, 512, 512)
    text = " ".join(learning_sentences(learning))
    assert "sft: follows no law that names a limit" in text
    assert "sft overtakes zero_shot between 256 and 512 [256, 512] examples" in text


def test_nothing_is_foretold_where_no_law_fits() -> None:
    learning = invented(lambda n: 0.7 if n > 256 else 0.3, zero=0.9).learning["intents"]
    text = " ".join(learning_sentences(learning))
    assert "sft is not ahead of zero_shot at 1,024 examples, and no law says what more would do" in text


def test_what_one_seed_leaves_out_is_stated() -> None:
    curves = learning_sentences(invented(lambda n: 0.95 - 4.0 * n**-0.5, zero=0.3, seeds=1).learning["intents"])
    assert "one seed a size: what another would change is in no interval" in curves[1]


def test_small_sets_that_hurt_are_told() -> None:
    comparison = invented(lambda n: 0.3 if n <= 64 else 0.8, zero=0.6)
    warned = comparison.learning["intents"].warnings
    assert [w.partition(" training")[0] for w in warned] == ["64"]
    assert "! 64 training examples make sft worse than zero_shot" in render(comparison)


def test_two_sizes_make_no_curve() -> None:
    results = [make_result(make_cell("sft", size=n), [1.0, 0.0] * 10) for n in (64, 128)]
    assert compare(results, needs=Needs(), prices=Prices(), experiment="x").learning == {}
