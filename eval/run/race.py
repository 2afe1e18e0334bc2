"""Race the arms of a task: all are fitted, then scored block by block, and those that cannot win any more stop."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from crossover.eval.analysis.racing import Racer
from crossover.eval.experiment.spec import Cell
from crossover.eval.experiment.splits import sample
from crossover.eval.run.cell import Measured, Started, probe_of, result_of, start_cell
from crossover.eval.run.work import Work
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows
from crossover.programs.splits import fraction

BLOCK, BLOCKS = 10, 50
"""Examples between two looks, at least; looks in all, at most."""


@dataclass
class Entrant:
    """One cell in the race."""

    key: str
    rows: Rows = field(default_factory=Rows)
    started: Started | None = None
    """None for a cell that was measured before."""
    seconds: float = 0.0
    timed: int = 0
    """Rows that the seconds were spent on."""

    def read(self, work: Work, examples: Sequence[dspy.Example]) -> list[float]:
        """Return the scores of a block, 0 for a failure, after scoring what is not scored yet."""
        if self.started is not None:
            wanted = {str(e["id"]) for e in examples}
            block = [e for e in self.started.test if str(e["id"]) in wanted]
            self.rows, seconds = self.started.score(work, block)
            if seconds:
                self.seconds, self.timed = self.seconds + seconds, self.timed + len(block)
        scores = dict(self.rows.scored())
        return [scores.get(str(e["id"]), 0.0) for e in examples]

    def measured(self, work: Work, dropped: Mapping[str, Any] | None = None) -> Measured:
        """Return the result of what was scored; an arm that was dropped is not timed."""
        assert self.started is not None
        seconds = self.seconds * len(self.rows) / self.timed if self.timed else 0.0
        result = result_of(work, self.started, self.rows, seconds)
        result.dropped = None if dropped is None else dict(dropped)
        return result, None if dropped else probe_of(work, self.started)


def race_cells(work: Work, cells: Sequence[Cell], rivals: Sequence[Result]) -> Iterator[Measured]:
    """Race the cells of one task, and yield those that are dropped as they are, then those that were read to the end.

    `rivals` were measured before and take part with the rows they have. The order is that of a hash of the ids, so
    that a race that was interrupted goes the same way again, reading from the rows that it has.

    Raises:
        Stopped: no further call may be made.
    """
    arms = _arms(work, cells, rivals)
    test = sorted(sample(work.tasks[cells[0].task].test, work.experiment.limit), key=lambda e: fraction(str(e["id"])))
    racer, totals, size = Racer(len(arms), len(test)), np.zeros(len(arms)), max(BLOCK, -(-len(test) // BLOCKS))
    for start in range(0, len(test), size) if arms else ():
        work.allowance.check()
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
            work.progress.note(f"race: {_name(arms[n])} cannot win any more and is dropped")
            left = {"after": start + len(block), "of": len(test), "by": [e.key for e in arms[leader]]}
            yield from (e.measured(work, left) for e in arms[n] if e.started is not None)
    for n in np.flatnonzero(racer.alive):
        yield from (e.measured(work) for e in arms[n] if e.started is not None)


def _arms(work: Work, cells: Sequence[Cell], rivals: Sequence[Result]) -> list[list[Entrant]]:
    """Return the arms, each with an entrant for every seed, after fitting those that are new."""
    arms: dict[tuple[object, ...], list[Entrant]] = {}
    for result in rivals:
        # One that was dropped in an earlier race of the same experiment stays out.
        if result.dropped is None:
            arms.setdefault(_arm(result.cell), []).append(Entrant(result.key, Rows.of(result.rows)))
    for cell in cells:
        work.begin(cell)
        if (started := start_cell(work, cell)) is not None:
            arms.setdefault(_arm(cell), []).append(Entrant(started.key, started=started))
        work.progress.finish_cell()
    return list(arms.values())


def _arm(cell: Cell) -> tuple[object, ...]:
    """Return what the seeds of an arm share."""
    return cell.model, cell.method.label, cell.train_size, cell.knowledge, cell.retrieval and cell.retrieval.label


def _name(arm: Sequence[Entrant]) -> str:
    return next((e.started.cell.method.label for e in arm if e.started), arm[0].key)
