"""Hand the cells that a run lacks to a backend, which fits and scores them."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial

from crossover.eval.experiment.spec import Cell, Experiment, Limits
from crossover.eval.run.backends.ray_tasks import score_on_ray
from crossover.eval.run.backends.slurm import score_on_slurm
from crossover.eval.run.backends.worker import Backend, Job
from crossover.eval.run.calibration import TimedPart
from crossover.eval.run.context import RunContext
from crossover.eval.run.forecast import expected_shares
from crossover.models.errors import UserError
from crossover.models.limits import Stopped

LOCAL = "local"


def backend_named(name: str, experiment: Experiment) -> Backend | None:
    """Return the backend `ray`, `ray://HOST:PORT`, `slurm` or `slurm:local`; None for `local`, which is this process.

    Raises:
        UserError: no backend has that name, Slurm is not on this machine, or the experiment needs all of its cells in
            one process.
    """
    if name == LOCAL:
        return None
    kind, _, rest = name.partition(":")
    if not (kind == "ray" and rest[:2] in ("", "//")) and name not in ("slurm", "slurm:local"):
        raise UserError(f"--backend {name}: no such backend; use local, ray, ray://HOST:PORT, slurm or slurm:local")
    for limit in ("usd", "calls", "tokens"):
        if (most := asdict(experiment.limits)[limit]) is not None:
            what = f"the limit of {most} {limit} is counted in one process"
            raise UserError(f"--backend {name}: {what}; leave it out, or use --backend local")
    if experiment.racing:
        what = "racing drops arms in one process"
        raise UserError(f"--backend {name}: {what}; leave out `racing: true`, or use --backend local")
    if kind == "ray":
        return partial(score_on_ray, name if rest else os.environ.get("RAY_ADDRESS", ""))
    if name == "slurm" and shutil.which("sbatch") is None:
        raise UserError("--backend slurm: no sbatch here; run it where jobs are submitted, or use --backend local")
    return partial(score_on_slurm, rest or "slurm")


def score_on_workers(context: RunContext, backend: Backend, missing: Mapping[str, Cell]) -> dict[str, TimedPart | None]:
    """Fit and score the missing cells on workers, until all are done or a limit or Ctrl-C ends it.

    Returns the keys of the scored cells, and what those took that were not begun before. They are not finished: this
    process times them.
    """
    experiment, progress, scored = context.experiment, context.progress, dict[str, TimedPart | None]()
    # The run holds the limit of minutes; a worker's clock would start anew with every worker.
    job = Job(uuid.uuid4().hex, replace(experiment, limits=Limits()), context.store.resolve(), context.threads)
    progress.expect(expected_shares(experiment, list(missing.values()), context.tasks))
    progress.start_cell(1, f"{len(missing)} cells on workers")
    with contextlib.suppress(Stopped):
        for n, outcome in enumerate(backend(job, missing, context.allowance), 1):
            if outcome.failure:
                context.failures.append(outcome.failure)
                progress.note(f"warning: {outcome.failure}")
            else:
                scored[outcome.key] = outcome.part
            progress.finish_cell()
            if n < len(missing):
                progress.start_cell(n + 1, f"cells left on workers: {len(missing) - n}")
    return scored
