"""Judge the recorded experiments for `simulation.py recorded`, beside what was said of them before, and why."""

import re
from collections.abc import Callable
from pathlib import Path

from verdict_cases import Case, words

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.report.table import break_even_line
from crossover.eval.report.text import p95_words
from crossover.eval.store.recorded import read_recorded

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


def recorded(name: str, show: Callable[[Comparison], str]) -> Callable[[], str]:
    """Return a function that shows the comparison of a recorded experiment."""

    def now() -> str:
        found = read_recorded(FIXTURES / name)
        return show(compare(found.results, needs=found.needs, prices=found.prices, experiment=found.experiment))

    return now


def chosen(comparison: Comparison) -> str:
    """Return the method that the verdict chooses, and its confidence."""
    method, _, confidence = words(comparison.verdicts[0]).rpartition(", ")
    return f"{method.partition(' ')[0]}, {confidence}"


def break_even(comparison: Comparison) -> str:
    """Return the break-even of the verdict."""
    found = comparison.verdicts[0].break_even
    return break_even_line(found).rpartition(": ")[2] if found else "none"


def p95(comparison: Comparison) -> str:
    """Return the p95 of the arm of the verdict as the table prints it."""
    arm_chosen = comparison.chosen(comparison.verdicts[0])
    return p95_words(arm_chosen.latency, lambda ms: f"{ms:.0f} ms") if arm_chosen else "none"


def price(comparison: Comparison) -> str:
    """Return the words by which the verdict states the price."""
    return re.sub(r"^.* at (\S+ .*? requests) .*$", r"\1", comparison.verdicts[0].because)


RECORDED: tuple[tuple[Case, str], ...] = (
    (Case("openings", "retrieved_demos, moderate", recorded("openings", chosen)), "significantly best by 0.57"),
    (
        Case("openings: break-even of sft", "4,702 requests", recorded("openings", break_even)),
        "sft is significantly worse: nobody waits for it to pay",
    ),
    (
        Case("openings: price", "$ per 1,000 requests", recorded("openings", price)),
        "fitting and hosting count where no volume is stated",
    ),
    (Case("wanted", "sft, moderate", recorded("wanted", chosen)), "significantly best by 0.13"),
    (
        Case("wanted: break-even of sft", "2,619 requests (2,559 to 2,693)", recorded("wanted", break_even)),
        "served in one block: how the machine's speed varies is not known",
    ),
    (Case("wanted: p95", "165 ms", recorded("wanted", p95)), "30 questions bound it from below alone"),
)
"""The recorded experiments, and why what is said of them changed."""
