"""Race the arms of a task: fit all, score them block by block, and drop the arms that are shown to be worse."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np

from crossover.eval.analysis.racing import Floats, Racer, block_size
from crossover.eval.experiment.spec import Cell
from crossover.eval.experiment.splits import sample
from crossover.eval.run.cell import FittedCell, Measured, probe_of, result_of, try_to_fit
from crossover.eval.run.context import RunContext
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows
from crossover.programs.splits import fraction


@dataclass
class RacingCell:
    """One cell in the race."""

    key: str
    rows: Rows = field(default_factory=Rows)
    fitted_cell: FittedCell | None = None
    """None for a cell that an earlier run measured."""
    seconds: float = 0.0
    timed: int = 0
    """Rows that `seconds` covers."""

    def read(self, context: RunContext, examples: Sequence[dspy.Example]) -> list[float]:
        """Return the scores of a block, NaN for a failed row, after scoring the rows that are missing."""
        if self.fitted_cell is not None:
            # The cell's own copies of the examples, which carry the passages that it may read.
            ids = {str(e["id"]) for e in examples}
            block = [e for e in self.fitted_cell.test if str(e["id"]) in ids]
            self.rows, seconds = self.fitted_cell.score(context, block)
            if seconds:
                self.seconds, self.timed = self.seconds + seconds, self.timed + len(block)
        scores = dict(self.rows.scored())
        return [scores.get(str(e["id"]), math.nan) for e in examples]

    def measured(self, context: RunContext, dropped: Mapping[str, Any] | None = None) -> Measured:
        """Return the result of the rows read so far; a dropped arm has no latency probe."""
        assert self.fitted_cell is not None
        # Rows of blocks without recorded seconds are taken to be as fast as the others.
        seconds = self.seconds * len(self.rows) / self.timed if self.timed else 0.0
        result = result_of(context, self.fitted_cell, self.rows, seconds)
        result.dropped = None if dropped is None else dict(dropped)
        return result, None if dropped else probe_of(context, self.fitted_cell, self.rows)


def race_cells(context: RunContext, cells: Sequence[Cell], rivals: Sequence[Result]) -> Iterator[Measured]:
    """Race the cells of one task; yield dropped cells as they drop out, then those that were scored to the end.

    `rivals` are finished cells, which take part with their rows; those of a dropped arm end where it was dropped, and
    its bets with them. The examples come in the order of a hash of their ids,
    or of their clusters, so that an interrupted race goes the same way again, from the rows on disk.

    Raises:
        Stopped: a limit was reached.
    """
    arms = _arms(context, cells, rivals)
    test = sample(context.tasks[cells[0].task].test, context.experiment.limit)
    racer, totals, seen = Racer(len(arms)), np.zeros(len(arms)), 0
    for block in blocks_of(test, context.threads) if arms else ():
        context.allowance.check()
        context.progress.note(f"race: {racer.alive.sum()} of {len(arms)} arms left after {seen} examples")
        scores = np.full((len(arms), len(block)), np.nan)
        for n in np.flatnonzero(racer.alive):
            scores[n] = _mean_over_seeds(np.array([e.read(context, block) for e in arms[n]]))
        seen += len(block)
        totals += np.nan_to_num(scores).sum(axis=1)
        # After the last block nothing is left to save.
        if seen == len(test):
            break
        before = racer.alive.copy()
        alive = racer.update(scores, [str(e["cluster"]) for e in block] if "cluster" in block[0] else None)
        # Recorded as the leader over the dropped arm: the result stands only beside these cells.
        leader = int(np.argmax(np.where(alive, totals, -np.inf)))
        for n in np.flatnonzero(before & ~alive):
            context.progress.note(f"race: {_name(arms[n])} is shown to be worse and is dropped")
            left = {"after": seen, "of": len(test), "by": [e.key for e in arms[leader]]}
            yield from (e.measured(context, left) for e in arms[n] if e.fitted_cell is not None)
    for n in np.flatnonzero(racer.alive):
        yield from (e.measured(context) for e in arms[n] if e.fitted_cell is not None)


def blocks_of(test: Sequence[dspy.Example], threads: int) -> list[list[dspy.Example]]:
    """Return the examples in blocks of whole clusters, in an order that a hash decides."""

    def place(e: dspy.Example) -> tuple[float, float]:
        return fraction(str(e["cluster"])) if "cluster" in e else 0.0, fraction(str(e["id"]))

    size = block_size(len(test), threads)
    blocks: list[list[dspy.Example]] = []
    for e in sorted(test, key=place):
        full = blocks and len(blocks[-1]) >= size
        if not blocks or (full and ("cluster" not in e or e["cluster"] != blocks[-1][-1]["cluster"])):
            blocks.append([])
        blocks[-1].append(e)
    return blocks


def _mean_over_seeds(table: Floats) -> Floats:
    """Return the mean of each column, shape (seeds, examples), over the seeds that did not fail; NaN where all did."""
    known = (~np.isnan(table)).sum(axis=0)
    return np.where(known > 0, np.nan_to_num(table).sum(axis=0) / np.maximum(known, 1), np.nan)


def _arms(context: RunContext, cells: Sequence[Cell], rivals: Sequence[Result]) -> list[list[RacingCell]]:
    """Return the arms, each with a cell for every seed, after fitting the new ones."""
    arms: dict[tuple[object, ...], list[RacingCell]] = {}
    for result in rivals:
        # Also one that was dropped before an interruption: the bar counts every arm that there was to choose from.
        arms.setdefault(_arm(result.cell), []).append(RacingCell(result.key, Rows.of(result.rows)))
    for cell in cells:
        context.begin(cell)
        if (fitted_cell := try_to_fit(context, cell)) is not None:
            arms.setdefault(_arm(cell), []).append(RacingCell(fitted_cell.key, fitted_cell=fitted_cell))
        context.progress.finish_cell()
    return list(arms.values())


def _arm(cell: Cell) -> tuple[object, ...]:
    """Return the identity of the arm: everything but the seed."""
    return cell.model, cell.method.label, cell.train_size, cell.knowledge, cell.retrieval and cell.retrieval.label


def _name(arm: Sequence[RacingCell]) -> str:
    """Return the label of the arm's method, or its key when all of its cells were measured before."""
    return next((e.fitted_cell.cell.method.label for e in arm if e.fitted_cell), arm[0].key)
