"""Score a fitted program on test examples, uncached, and append the rows as they come."""

import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import dspy

from crossover.eval.run.progress import Progress
from crossover.eval.store.result import RowLog, read_rows
from crossover.eval.store.rows import Rows, read_table
from crossover.models.ahead import Ahead, sending_ahead
from crossover.models.api_keys import redact, redact_all
from crossover.models.engine import innermost, states_of
from crossover.models.jsonl import read_lines
from crossover.models.last_answer import recorded
from crossover.models.load import LoadedModel
from crossover.models.meter import Meter
from crossover.models.price import TokenCounts
from crossover.programs.score import Row, scorer
from crossover.programs.task import Fitted, Metric, Task
from crossover.programs.threads import in_threads

FATAL = ("LMAuthError", "LMBillingError", "LMUnsupportedModelError", "LMNotConfiguredError")
"""Failures that no later row escapes: a wrong key, a used-up quota, an unknown model."""
FIRST_ROWS = 3


def measure_accuracy(
    fitted: Fitted,
    task: Task,
    examples: Sequence[dspy.Example],
    model: LoadedModel,
    *,
    file: Path,
    threads: int,
    progress: Progress,
) -> tuple[Rows, float]:
    """Score every example that `file` does not hold yet; return all its rows, and the seconds that `examples` take.

    The seconds follow from the pace of all rows ever answered, in whichever process. The answers of a provider are kept
    one by one until all rows are written and none failed, so that neither a pass that was killed nor one that asks for
    the failed rows again pays for any of them twice.
    """
    # Ids alone: a million rows as objects would take most of a gigabyte.
    done = {sys.intern(r.id) for r in read_rows(file, progress.note)}
    left, table = [e for e in examples if str(e["id"]) not in done], read_table(file)
    before = len(examples) - len(left)
    progress.examples(before, len(examples))
    answers, fresh = None if model.local else file.with_name("serving.jsonl"), 0
    lm = recorded(fitted.lm if answers is None else Meter(file=answers).metered(fitted.lm))
    # DSPy's history and trace would hold ten thousand prompts a second time, beside the rows.
    # And what the model keeps of another arm's prompts would make this one look cheaper than it is.
    context = dspy.context(lm=lm, adapter=model.prompt_format, disable_history=True, trace=None)
    ahead = sending_ahead(fitted.program, lm, model.prompt_format)
    with RowLog(file) as log, context, states_of(fitted.lm, file), ahead as sent:
        scored = _scored(fitted.program, left, task.metric, model.price, threads, sent)
        for rows in until_outage(scored, left, progress.note):
            # A provider's answer, a program or a metric may quote a key.
            safe = [row if model.local and not row.failure else _redacted(row) for row in rows]
            log.add(safe)
            for row in safe:
                table.append(vars(row))
            fresh += len(safe)
            progress.examples(before + fresh, len(examples))
    # Weights that were trained are saved with a tokenizer that lacks nothing any more.
    remarks = dict.fromkeys([*innermost(model.lm).remarks, *innermost(fitted.lm).remarks])
    fitted.warnings += [r for r in remarks if r not in fitted.warnings]
    if answers is not None and not table.failed:
        # The rows now hold every answer that was paid for.
        answers.unlink(missing_ok=True)
    pace = [(line["rows"], line["seconds"]) for line in read_lines(log.paces)]
    if not pace and len(table):
        # Rows of a version that wrote no pace: their seconds overlap, one stream a thread.
        pace = [(len(table), sum(table.seconds) / min(threads, len(table)))]
    timed = sum(rows for rows, _ in pace)
    return table, sum(seconds for _, seconds in pace) * len(examples) / timed if timed else 0.0


def _redacted(row: Row) -> Row:
    return replace(row, failure=redact(row.failure), raw=redact(row.raw), output=redact_all(row.output))


def _scored(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    metric: Metric,
    price: Callable[[TokenCounts], float | None],
    threads: int,
    ahead: Ahead | None,
) -> Generator[list[Row], None, None]:
    """Yield a row for each example; their prompts are sent ahead if the first shows that the program asks for them."""
    if ahead is None:
        yield from in_threads(scorer(program, metric, price=price), examples, threads)
        return

    def waited(example_id: str) -> float:
        # As in a thread that waits for its answer.
        return ahead.waited.pop(example_id, 0.0)

    score, rest = scorer(program, metric, price=price, waited=waited), examples[1:]
    yield from in_threads(score, ahead.answered(examples[:1]), 1)
    if ahead.claimed:
        yield from in_threads(score, ahead.answered(rest), threads, when_needed=True)
    else:
        yield from in_threads(score, rest, threads)


def until_outage(
    batches: Generator[list[Row], None, None], examples: Sequence[dspy.Example], note: Callable[[str], None]
) -> Generator[list[Row], None, None]:
    """Yield the rows; where the first all fail by one of FATAL, ask no more and yield the rest as failed alike."""
    first, seen = list[Row](), set[str]()
    for rows in batches:
        yield rows
        seen.update(row.id for row in rows)
        if len(first) < FIRST_ROWS:
            first = [*first, *rows][:FIRST_ROWS]
            kinds = {row.failure.removeprefix("lm: ").partition(":")[0] for row in first}
            if len(first) == FIRST_ROWS and len(kinds) == 1 and kinds <= set(FATAL):
                break
    else:
        return
    batches.close()
    left, failure = [e for e in examples if str(e["id"]) not in seen], first[-1].failure
    note(f"warning: the first {FIRST_ROWS} rows failed alike, so {len(left)} are not asked: {failure}")
    yield [Row(str(e["id"]), None, failure, 0, 0, 0, 0, 0.0, 0.0, {}) for e in left]
