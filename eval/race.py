"""Race the arms of a task: all are fitted, then scored block by block, and those that cannot win any more stop."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from eval.cell import Started, Work, probe_of, result_of, start_cell
from eval.experiment import Cell
from eval.measure import Probe, Result, read_rows, score_missing
from eval.racing import Racer
from eval.splits import sample
from programs.score import Row
from programs.splits import fraction

BLOCK, BLOCKS = 10, 50
"""Examples between two looks, at least; looks in all, at most."""


@dataclass
class Entrant:
    """One cell in the race."""

    key: str
    done: dict[str, Row]
    started: Started | None = None
    """None for a cell that was measured before."""
    rows: list[Row] = field(default_factory=list)
    """Rows read in this race."""
    seconds: float = 0.0
    timed: int = 0
    """Rows that the seconds were spent on."""

    def read(self, work: Work, examples: Sequence[dspy.Example]) -> list[float]:
        """Return the scores of a block, 0 for a failure, after scoring what is not scored yet."""
        rows = [self.done[str(e["id"])] for e in examples] if self.started is None else self._score(work, examples)
        self.rows += rows
        return [r.score or 0.0 for r in rows]

    def _score(self, work: Work, examples: Sequence[dspy.Example]) -> list[Row]:
        assert self.started is not None
        cell, wanted = self.started.cell, {str(e["id"]) for e in examples}
        with dspy.context(rm=work.passages(cell).live(cell.knowledge.test)):
            rows, seconds = score_missing(
                self.started.fitted, self.started.task, [e for e in self.started.test if str(e["id"]) in wanted],
                self.started.model, self.done,
                file=self.started.folder / "rows.jsonl", threads=work.threads, progress=work.progress,
            )  # fmt: skip
        if seconds:
            self.seconds, self.timed = self.seconds + seconds, self.timed + len(rows)
            work.pay(rows=rows)
        by_id = {r.id: r for r in rows}
        return [by_id[str(e["id"])] for e in examples]

    def result(self, work: Work, dropped: dict[str, Any] | None) -> Result:
        """Return the result of what was read, in the order of the split."""
        assert self.started is not None
        by_id = {r.id: r for r in self.rows}
        rows = [by_id[i] for e in self.started.test if (i := str(e["id"])) in by_id]
        seconds = self.seconds * len(rows) / self.timed if self.timed else 0.0
        result = result_of(work, self.started, rows, seconds)
        result.dropped = dropped
        return result


def race_group(
    work: Work, cells: Sequence[Cell], rivals: Sequence[Result]
) -> tuple[list[tuple[Result, Probe | None]], str]:
    """Return the cells of one task that were measured, dropped ones without a probe, and the limit reached, if any.

    `rivals` were measured before and take part with the rows they have. The order is that of a hash of the ids, so
    that a race that was interrupted goes the same way again, reading from the rows that it has.
    """
    arms, stopped = _entrants(work, cells, rivals)
    if stopped or not arms:
        return [], stopped
    test = sorted(sample(work.tasks[cells[0].task].test, work.experiment.limit), key=lambda e: fraction(str(e["id"])))
    racer, dropped = Racer(len(arms), len(test)), dict[int, dict[str, Any]]()
    totals, size = np.zeros(len(arms)), max(BLOCK, -(-len(test) // BLOCKS))
    for start in range(0, len(test), size):
        if stopped := work.limit_reached():
            break
        block = test[start : start + size]
        work.progress.note(f"race: {racer.alive.sum()} of {len(arms)} arms left after {start} examples")
        scores = np.zeros((len(arms), len(block)))
        for n in np.flatnonzero(racer.alive):
            scores[n] = np.mean([e.read(work, block) for e in arms[n]], axis=0)
        totals += scores.sum(axis=1)
        before = racer.alive.copy()
        alive = racer.update(scores) if before.sum() > 1 else before
        leader = int(np.argmax(np.where(alive, totals, -np.inf)))
        for n in np.flatnonzero(before & ~alive):
            dropped[int(n)] = {"after": start + len(block), "of": len(test), "by": [e.key for e in arms[leader]]}
            work.progress.note(f"race: {_name(arms[n])} cannot win any more and is dropped")
    finished = [n for n in range(len(arms)) if n in dropped or not stopped]
    return [_measured(work, e, dropped.get(n)) for n in finished for e in arms[n] if e.started is not None], stopped


def _entrants(work: Work, cells: Sequence[Cell], rivals: Sequence[Result]) -> tuple[list[list[Entrant]], str]:
    """Return the arms, each with an entrant for every seed, after fitting those that are new."""
    arms: dict[tuple[object, ...], list[Entrant]] = {}
    for result in rivals:
        # One that was dropped in an earlier race of the same experiment stays out.
        if result.dropped is None:
            arms.setdefault(_arm(result.cell), []).append(Entrant(result.key, {r.id: r for r in result.rows}))
    for cell in cells:
        if stopped := work.limit_reached():
            return [], stopped
        work.progress.start_cell(work.next_number(), f"{cell.task} {cell.method.label} seed={cell.seed}")
        if (started := start_cell(work, cell)) is not None:
            work.pay(started.fitted)
            done = {r.id: r for r in read_rows(started.folder / "rows.jsonl")}
            arms.setdefault(_arm(cell), []).append(Entrant(started.key, done, started))
        work.progress.finish_cell()
    return list(arms.values()), ""


def _arm(cell: Cell) -> tuple[object, ...]:
    """Return what the seeds of an arm share."""
    return cell.model, cell.method.label, cell.train_size, cell.knowledge, cell.retrieval and cell.retrieval.label


def _name(arm: Sequence[Entrant]) -> str:
    return next((e.started.cell.method.label for e in arm if e.started), arm[0].key)


def _measured(work: Work, entrant: Entrant, dropped: dict[str, Any] | None) -> tuple[Result, Probe | None]:
    assert entrant.started is not None
    return entrant.result(work, dropped), None if dropped else probe_of(work, entrant.started)
