"""What is said of a training that made the model worse at other tasks."""

from dataclasses import replace

from factories import make_cell, make_result, right

from crossover.eval.analysis.compare import compare
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.run.retention import RetentionResult, retention_report

FINE = RetentionResult("stdlib_module", 0.50, 0.49, -0.06, 0.04, 0.20, 0.18, 100)


def test_a_loss_beyond_margin_and_chance_is_told() -> None:
    lost = replace(FINE, after=0.30, low=-0.29, high=-0.11)
    assert retention_report([FINE, lost])[1] == [
        "forgets stdlib_module: 0.500 before, 0.300 after [-0.290, -0.110], n 100"
    ]
    assert retention_report([replace(lost, high=0.01)])[1] == []
    assert retention_report([replace(FINE, after=0.47, high=-0.01)])[1] == []


def test_a_model_that_learns_no_more_in_context_is_told() -> None:
    deaf = replace(FINE, gain_after=-0.01)
    assert retention_report([deaf])[1] == [
        "learns no more in context on stdlib_module: 4 examples bought +0.200 before, -0.010 after"
    ]


def test_the_verdict_repeats_what_the_chosen_arm_forgets() -> None:
    tuned, plain = make_result(make_cell("sft"), right(280, 300)), make_result(make_cell("zero_shot"), right(90, 300))
    tuned.warnings = retention_report([replace(FINE, after=0.30, low=-0.29, high=-0.11)])[1]
    verdict = compare([plain, tuned], needs=Needs(), prices=Prices(), experiment="x").verdicts[0]
    assert verdict.choose == "sft"
    assert verdict.because.endswith("But it forgets stdlib_module: 0.500 before, 0.300 after [-0.290, -0.110], n 100.")
