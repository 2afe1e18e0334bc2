"""Score a fitted variant of a method on val, by which one variant is chosen to stand for the method."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import dspy

from crossover.eval.analysis.arm import MOST_FAILED
from crossover.eval.run.context import RunContext
from crossover.eval.run.measure import until_outage
from crossover.models.meter import Meter
from crossover.programs.score import scorer
from crossover.programs.task import Fitted, Task
from crossover.programs.threads import in_threads


def score_on_val(
    context: RunContext, fitted: Fitted, task: Task, val: Sequence[dspy.Example], *, answers: Path
) -> None:
    """Add the score on val to the facts of a fit, and to its usage what reading val took, with val's labels.

    A fit that is killed and repeated replays the file `answers`. Where more than `MOST_FAILED` of the calls failed
    there is no score.
    """
    meter = Meter(file=answers)
    with dspy.context(lm=meter.metered(fitted.lm), disable_history=True, trace=None):
        scored = in_threads(scorer(fitted.program, task.metric), val, context.threads)
        rows = list(chain.from_iterable(until_outage(scored, val, context.progress.note)))
    meter.close()
    scores, labels = [r.score for r in rows if r.score is not None], fitted.facts.labels_used
    fitted.spent += replace(meter.total, seconds=meter.seconds)
    fitted.facts = replace(
        fitted.facts,
        val_score=sum(scores) / len(scores) if scores and len(scores) >= (1 - MOST_FAILED) * len(rows) else None,
        labels_used=None if labels is None else labels + len(val),
    )
