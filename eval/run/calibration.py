"""Scale forecasts by what earlier runs took, and state by how much they erred."""

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from crossover.eval.analysis.ledger import machine_usd
from crossover.eval.report.data import machine
from crossover.eval.report.text import money
from crossover.eval.run.forecast import Forecast
from crossover.eval.run.progress import duration
from crossover.eval.store.timings import Timed, read_timed, save_timed
from crossover.models.spec import ModelSpec

LATEST = 10
"""Records of one model and kind of machine that a forecast is scaled by."""


def machine_kind(model: ModelSpec) -> str:
    """Return the kind of this machine, with its accelerator or the server that answers for a model of this project."""
    if not model.runs_here:
        return machine()
    if model.by_vllm and model.api_base:
        return f"{machine()}, {model.api_base}"
    from crossover.models.device import accelerator, device_name

    return machine() if device_name() == "cpu" else f"{machine()}, {accelerator()}"


def seconds_of(work: Mapping[str, float], records: Sequence[Timed], kind: str) -> float | None:
    """Return the seconds that work is likely to take on a kind of machine, by the latest records of each model.

    `work` maps models to weighted tokens. Long runs count for more than short ones. None where one of the models was
    never timed on such a machine.
    """
    total = 0.0
    for model, tokens in work.items():
        latest = [r for r in records if (r.machine, r.model) == (kind, model)][-LATEST:]
        if not latest:
            return None
        total += tokens * sum(r.seconds for r in latest) / max(1e-9, sum(r.work for r in latest))
    return total


def likely_lines(cells: Sequence[Forecast], store: Path, *, machine_hour_usd: float) -> list[str]:
    """Return what the cells are likely to take on each kind of machine that ran their models, and the peak memory."""
    records, work = read_timed(store), dict[str, float]()
    for cell in cells:
        # What cells share, such as a judge, is not timed by itself.
        if cell.work:
            work[cell.model] = work.get(cell.model, 0.0) + cell.work
    lines = []
    for kind in dict.fromkeys(r.machine for r in records if r.model in work):
        if (seconds := seconds_of(work, records, kind)) is not None:
            latest = [r for r in records if r.machine == kind and r.model in work][-LATEST:]
            errors = [abs(r.seconds / r.expected - 1) for r in latest if r.expected]
            erred = f"; earlier forecasts erred by {median(errors):.0%} (median)" if errors else ""
            memory = f"peak memory {max(r.mib for r in latest) / 1024:.1f} GiB"
            usd = money(machine_usd(seconds, machine_hour_usd))
            lines.append(
                f"likely {duration(seconds)}, ${usd} of machine time, {memory} on {kind}, by earlier runs{erred}"
            )
    return lines or (
        [f"memory with the models loaded: {peak_mib() / 1024:.1f} GiB; trainings take more"]
        if any(c.seconds is not None for c in cells)
        else []
    )


def peak_mib() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class TimedPart(NamedTuple):
    """What a worker took to fit and score a cell from its beginning."""

    machine: str
    seconds: float
    mib: float
    """Most memory that the worker has had so far."""


class Calibration:
    """Time the groups of a run against their forecast, and keep both."""

    def __init__(self, store: Path) -> None:
        """Read what earlier runs took."""
        self._store, self._records, self._timed = store, read_timed(store), list[Timed]()

    def count(self, model: ModelSpec, work: float, seconds: float, parts: Sequence[TimedPart] = ()) -> None:
        """Keep how long the whole cells of one task and model took; `work` is what the forecast counts of them.

        The seconds of workers count in full, as if one machine had done all; nothing is kept where machines differ.
        """
        kind = machine_kind(model)
        if any(p.machine != kind for p in parts):
            return
        expected = seconds_of({model.name: work}, self._records, kind)
        seconds, mib = seconds + sum(p.seconds for p in parts), max([peak_mib(), *(p.mib for p in parts)])
        self._timed.append(Timed(kind, model.name, work, seconds, expected, mib))
        save_timed(self._store, self._timed[-1])

    def line(self) -> str:
        """Return how the forecast of the run compares with what it took; empty where nothing was timed."""
        took, known = sum(t.seconds for t in self._timed), [t.expected for t in self._timed if t.expected]
        if not self._timed:
            return ""
        if len(known) < len(self._timed):
            return f"note: took {duration(took)}; `crossover plan` forecasts by it from now on"
        error = took / sum(known) - 1
        return (
            f"note: forecast {duration(sum(known))}, took {duration(took)} ({error:+.0%}); the next one is scaled by it"
        )
