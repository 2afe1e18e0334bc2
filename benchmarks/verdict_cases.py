"""Judge single cases for `simulation.py cases`, beside what was made of each before."""

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import dspy
import numpy as np
from choice_simulation import arm
from latency_simulation import PROMPT, fresh_run

from crossover.eval.analysis.arm import Arm, arms_of
from crossover.eval.analysis.compare import Comparison, Verdicts, compare
from crossover.eval.analysis.contrast import classify_difference
from crossover.eval.analysis.cost import Cost, usd
from crossover.eval.analysis.latency import quantile_interval
from crossover.eval.analysis.learning import learning_of
from crossover.eval.analysis.ledger import labels_of
from crossover.eval.analysis.racing import block_size, replay
from crossover.eval.analysis.rules import MARGIN
from crossover.eval.analysis.stats import paired_difference
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.report.table import break_even_line
from crossover.eval.report.text import dollars
from crossover.eval.run.latency import timed_questions
from crossover.eval.store.facts import split_notes
from crossover.eval.store.result import Result
from crossover.models.load import local_lm
from crossover.models.usage import Usage
from crossover.optimizers.bootstrap import Bootstrap
from crossover.programs.load import builtin_task
from crossover.programs.task import Budget, FitFacts

Scores = Sequence[float | None]


class Case(NamedTuple):
    """One line of the table."""

    what: str
    before: str
    """What the version before the mending made of it, by this code where its functions had the same form."""
    now: Callable[[], str]


def right(count: int, of: int, *, shift: int = 0) -> Scores:
    """Return right/wrong scores, the first `count` of them right, rotated by `shift`."""
    return [float((i - shift) % of < count) for i in range(of)]


def judged(*results: Result, prices: Prices | None = None, **needs: float) -> Comparison:
    """Return the comparison of the results."""
    return compare(results, needs=Needs(**needs), prices=prices or Prices(), experiment="invented")


def words(verdict: Verdict) -> str:
    """Return the choice and its confidence."""
    return f"{verdict.choose}, {verdict.confidence}" if verdict.choose else "no verdict"


def judge(*results: Result, prices: Prices | None = None, **needs: float) -> Callable[[], str]:
    """Return a function that judges the results."""
    return lambda: words(judged(*results, prices=prices, **needs).verdicts[0])


def dropped_of_160_and_159() -> str:
    """Return the arms that a race drops of two that answer 160 and 159 of 200 questions right."""
    table = np.array([right(160, 200), right(159, 200, shift=30)], dtype=float)
    races = [replay(table, block=block_size(200, threads=32), seed=s) for s in range(100)]
    return f"dropped in {sum(len(r.alive) < 2 for r in races)} of 100 orders"


def twelve_arms_under_a_budget() -> str:
    """Return the verdict over twelve arms at a volume at which the best one is too dear."""
    results = [arm("sft", right(8 * n, 100), 100.0 if n == 12 else 1.0, size=n) for n in range(1, 13)]
    comparison = judged(*results, prices=Prices(machine_hour_usd=3.60))
    again = Verdicts(comparison, "invented").under(comparison.arms, Needs(volume_per_month=1e7, max_usd_per_month=2000))
    return words(again)


def contrasts_of_18_variants() -> str:
    """Return how many contrasts two methods with nine variants each make."""
    results = [
        replace(arm(m, right(150, 300), size=n), facts=FitFacts(val_score=0.5))
        for m in ("few_shot", "sft")
        for n in range(1, 10)
    ]
    return f"{len(judged(*results).contrasts)}"


def examples_to_add() -> str:
    """Return what the verdict says of more examples, for three tied arms."""
    results = [
        arm(m, right(200 + 5 * n, 300, shift=20 * n)) for n, m in enumerate(("zero_shot", "few_shot", "many_shot"))
    ]
    verdict = judged(*results).verdicts[0]
    return ", ".join(re.findall(r"(?:about|up to) [\d,]+(?: to [\d,]+)? more", f"{verdict.because} {verdict.flips}"))


def trained(scores: Scores, seconds: float, *, fit_seconds: float = 0.0, labels: int = 0) -> list[Result]:
    """Return the results of two seeds of a training."""
    facts, fit = FitFacts(labels_used=labels), Usage(seconds=fit_seconds)
    return [replace(arm("sft", scores, seconds, seed=s), facts=facts, fit=fit) for s in (0, 1)]


def questions_of_three_seeds() -> str:
    """Return how many distinct questions three seeds time on a test set of 300."""
    test = [dspy.Example(id=str(n)) for n in range(300)]
    return str(len({e["id"] for s in (0, 1, 2) for e in timed_questions(test, 80, seed=s, seeds=[0, 1, 2])[0]}))


def p95_of_30_questions() -> str:
    """Return whether three seeds that ask the same 30 questions bound p95 from above."""
    high = quantile_interval(np.linspace(0.1, 0.2, 90).tolist(), 0.95, questions=30).high
    return "none" if math.isinf(high) else "finite"


def break_even_beside_a_better_arm() -> str:
    """Return the break-even of a training that is cheaper to serve and significantly worse."""
    prompt, tuned = arm("few_shot", right(240, 300), 30.0), arm("sft", right(180, 300), 10.0)
    found = judged(prompt, replace(tuned, fit=Usage(seconds=1000))).verdicts[0].break_even
    return break_even_line(found) if found else "none"


def break_evens_of_fresh_runs(saved: float = 0.05) -> str:
    """Return the break-evens that four runs of one experiment find, of an arm that saves little beside a prompt."""
    rng = np.random.default_rng(4)
    found = [fresh_run(rng, tuned=PROMPT * (1 - saved)) for _ in range(4)]
    return "; ".join(break_even_line(b).partition(": ")[2].replace(" requests", "") for b in found)


def labels_of_old_hybrid() -> str:
    """Return the labels of a hybrid of 8 fixed demonstrations and a pool of 56, which an earlier version stored."""
    facts, notes = split_notes({"pool": 56, "fixed": 8})
    return str(labels_of(replace(arm("hybrid", right(10, 10)), facts=facts, notes=notes)))


def labels_of_bootstrap() -> str:
    """Return the labels that a bootstrap is charged, with 64 examples of train and 20 of val."""
    from overhead import Canned  # it loads torch

    task, lm = builtin_task("stdlib_module"), local_lm("local/canned", Canned(0), 8, 0.0)
    train, val = task.train[:64], task.val[:20]
    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(workdir=Path(folder))
        fitted = Bootstrap().fit(task.program(), train=train, val=val, metric=task.metric, lm=lm, seed=0, budget=budget)
    return str(fitted.facts.labels_used)


def cached_api() -> str:
    """Return the price of 1,000 requests to an API that found nine tenths of them in its cache while measured."""
    result = arm("few_shot", right(10, 10))
    result.rows[:] = [replace(r, usd=0.0001 if n else 0.001) for n, r in enumerate(result.rows)]
    result = replace(result, local=False, notes={"token_rates": [[0, 9e-6, 2e-5]]})
    return usd(arms_of([result], Prices())[0].cost.per_1k_requests or 0.0)


def hosting_of_local_prompting() -> str:
    """Return what hosting a prompted model that runs here costs, at $50 a month."""
    cost = arms_of([arm("few_shot", right(10, 10))], Prices(tuned_hosting_usd_per_month=50))[0].cost
    return f"{usd(cost.hosting_per_month)} a month"


def jump() -> list[Arm]:
    """Return arms of a training that jumps from 0.3 to 0.9 between 64 and 256 examples, and one untrained at 0.6."""
    chances = {16: 0.3, 64: 0.3, 256: 0.9, 1024: 0.9}
    tuned = [arm("sft", right(round(400 * p), 400, shift=n), size=n) for n, p in chances.items()]
    return arms_of([arm("zero_shot", right(240, 400)), *tuned], Prices())


def limit_of_a_jump() -> str:
    """Return the limit that the learning curve of the jump names."""
    learning = learning_of(jump(), samples=100)
    limit = learning.curves[0].limit if learning else None
    return "none" if limit is None else f"{limit[0]:.2f}"


def crossover_of_a_jump() -> str:
    """Return between which sizes the jump overtakes the untrained arm."""
    learning = learning_of(jump(), samples=100)
    found = learning.crossovers[0] if learning else None
    return f"{found.after} to {found.size.value:g} examples" if found and found.size.value else "never"


def equivalent_from() -> str:
    """Return from how many examples on two arms that never disagree are equivalent."""
    for n in range(50, 400):
        scores = {str(i): 1.0 for i in range(n)}
        if classify_difference(paired_difference(scores, scores), 1.0, margin=MARGIN) == "equivalent":
            return f"{n} examples"
    return "never"


def judge_two(prompted: Scores, tuned: Scores, **needs: float) -> Callable[[], str]:
    """Return a function that judges an arm without training and one with it."""
    return judge(arm("zero_shot", prompted), arm("sft", tuned), **needs)


def reason(prompted: Scores, tuned: Scores) -> Callable[[], str]:
    """Return a function that gives the first clause of the verdict's reason."""
    return lambda: (
        judged(arm("zero_shot", prompted), arm("sft", tuned)).verdicts[0].because.partition(":")[0].partition(",")[0]
    )


def leader(prompted: Scores, tuned: Scores) -> Callable[[], str]:
    """Return a function that tells which arm is named as leading where there is no verdict."""
    return lambda: (
        judged(arm("zero_shot", prompted), arm("sft", tuned)).verdicts[0].because.rpartition("; ")[2].partition(":")[0]
    )


THREE = ("zero_shot", "few_shot", "many_shot")
DEAR = Prices(machine_hour_usd=3600.0, label_usd=10.0)
SHAKY = (arm("few_shot", right(250, 300, shift=50), 5.0), arm("sft", [*right(262, 285), *[None] * 15], 90.0))

CASES: tuple[Case, ...] = (
    Case("160 and 159 of 200 right, in a race", "dropped in 91 of 100 orders", dropped_of_160_and_159),
    Case("12 arms, the best too dear at a stated volume", "KeyError", twelve_arms_under_a_budget),
    Case("tests of 2 methods with 9 variants each", "153", contrasts_of_18_variants),
    Case("3 tied arms: examples to add", "about 2,700 more, about 1,800 more", examples_to_add),
    Case(
        "as good and 9 % cheaper than few_shot",
        "zero_shot, high",
        judge(arm("few_shot", right(1604, 2000), 100.0), arm("zero_shot", right(1600, 2000), 91.0)),
    ),
    Case(
        "$5,000 of labels for serving 1 % cheaper, beside few_shot",
        "sft, high",
        judge(arm("few_shot", right(1600, 2000), 100.0), *trained(right(1600, 2000), 99.0, labels=500), prices=DEAR),
    ),
    Case(
        "no volume stated; $100,000 of training saves half of $0.05 a request, beside few_shot",
        "sft, high",
        judge(
            arm("few_shot", right(1600, 2000), 100.0),
            *trained(right(1600, 2000), 50.0, fit_seconds=100_000.0),
            prices=DEAR,
        ),
    ),
    Case("15 of 300 rows failed, and decide", "sft, high", judge(*SHAKY)),
    Case("distinct questions that 3 seeds time", "30", questions_of_three_seeds),
    Case("upper end of p95, 3 seeds ask the same 30", "finite", p95_of_30_questions),
    Case("break-even of a training that is significantly worse", "15,000 requests", break_even_beside_a_better_arm),
    Case("break-even of a training that saves 5 %, four fresh runs", "58; 876; 120; never", break_evens_of_fresh_runs),
    Case("1,000 requests to an API at $1, nine of ten read from its cache while measured", "$0.19", cached_api),
    Case("hosting a prompted model on a machine of $50 a month", "$0 a month", hosting_of_local_prompting),
    Case("S-shape, 0.3 at 64 examples and 0.9 at 256: overtakes 0.6", "92 examples (65 to 114)", crossover_of_a_jump),
    Case("limit of that curve", "1.00", limit_of_a_jump),
    Case("a lone arm, 200 of 300 right", "zero_shot, high", judge(arm("zero_shot", right(200, 300)))),
    Case("4 of 200 right, the other arm none", "sft, high", judge_two(right(0, 200), right(4, 200))),
    Case("one seed of a training, significantly best", "sft, high", judge_two(right(60, 300), right(240, 300))),
    Case("0.80 of 300, min_score 0.82", "no verdict", judge_two(right(240, 300), right(60, 300), min_score=0.82)),
    Case("arms that never disagree, equivalent from", "115 examples", equivalent_from),
    Case("none of 40 right by any arm", "too few examples", reason(right(0, 40), right(0, 40))),
    Case("4 and 36 of 40 right", "no verdict", judge_two(right(4, 40), right(36, 40))),
    Case("20 and 26 of 40 right", "start with zero_shot or few_shot", leader(right(20, 40, shift=10), right(26, 40))),
    Case("labels of a hybrid of 8 fixed demonstrations and a pool of 56", "56", labels_of_old_hybrid),
    Case("labels of a bootstrap, 64 of train and 20 of val", "84", labels_of_bootstrap),
    Case("price of a right answer at score 0", "unpriced", lambda: dollars(Cost(0.0, 2.0, None).per_1k_correct(0.0))),
)
"""What was made of single cases, and what is made of them now."""
