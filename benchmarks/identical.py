"""Time two arms of identical prompts: `python benchmarks/identical.py [--model NAME]`.

The arm that is asked second must not profit from what the model kept of the first. The table goes into docs/method.md.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import dspy
from section import markdown_table, write_section

from crossover.eval.analysis.ledger import machine_usd
from crossover.eval.experiment.spec import Prices
from crossover.eval.run.latency import Probe, batches_of, measure_latency
from crossover.models.load import LoadedModel, load_model
from crossover.models.spec import ModelSpec
from crossover.optimizers.many_shot import ManyShot
from crossover.programs.load import builtin_task
from crossover.programs.task import Budget, Task

REQUESTS = 40
BEFORE = (("first", "214 ms", "171 ms", "$0.024"), ("second", "81 ms", "49 ms", "$0.032"))
"""Of two arms of the audited version that retrieved the same passages."""


def probe(model: LoadedModel, task: Task) -> Probe:
    """Return an arm that shows 16 demonstrations, ready to be timed."""
    budget = Budget(workdir=Path(), threads=1)
    with dspy.context(lm=model.lm, adapter=model.prompt_format):
        fitted = ManyShot(demos=16).fit(
            task.program(), train=task.train, val=(), metric=task.metric, lm=model.lm, seed=0, budget=budget
        )
    timed, warm_up, rest = task.test[:REQUESTS], task.test[REQUESTS : REQUESTS + 2], task.test[REQUESTS + 2 :]
    return Probe(fitted, model, timed, warm_up, None, batches=batches_of(rest, 80, threads=16), bounded=True)


def figures(arm: Probe) -> Sequence[str]:
    """Return the median latency, the median time to the first token and the price of 1,000 requests in batches."""
    latency = arm.latency()
    usd = 1000 * machine_usd(statistics.fmean(latency.batched), Prices().machine_hour_usd)
    medians = (1000 * statistics.median(seconds) for seconds in (latency.seconds, latency.first_token))
    return *(f"{ms:.0f} ms" for ms in medians), f"${usd:.3f}"


def main() -> int:
    """Time both arms and rewrite the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--model", default="smollm2")
    flags = parser.parse_args()
    model, task = load_model(ModelSpec(flags.model)), builtin_task("stdlib_module")
    arms = [probe(model, task) for _ in range(2)]
    measure_latency(arms)
    lines = [
        (f"asked {name}", *(f"{old} → {new}" for old, new in zip(before, figures(arm), strict=True)))
        for (name, *before), arm in zip(BEFORE, arms, strict=True)
    ]
    table = markdown_table(("two arms of identical prompts", "p50", "first token", "1,000 requests"), lines)
    text = f"{table}\n\nBefore → now, on other prompts and another, busier machine (`python benchmarks/identical.py`)."
    print(text)
    write_section("identical", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
