"""Hand the cells that a run lacks to a backend, and take in what comes back."""

import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from crossover.eval.experiment.spec import Cell, Experiment, Limits
from crossover.eval.run.backends.ray_tasks import measure_on_ray
from crossover.eval.run.backends.slurm import measure_on_slurm
from crossover.eval.run.backends.worker import Backend, Job
from crossover.eval.run.context import RunContext
from crossover.eval.run.forecast import expected_shares
from crossover.eval.tracking.background import BackgroundSync
from crossover.models.errors import UserError
from crossover.models.limits import Stopped

LOCAL = "local"


def backend_named(name: str, experiment: Experiment) -> Backend | None:
    """Return the backend `ray`, `ray://HOST:PORT` or `slurm`; None for `local`, which is this process.

    Raises:
        UserError: no backend has that name, or the experiment needs all of its cells in one process.
    """
    if name == LOCAL:
        return None
    if name != "slurm" and name != "ray" and not name.startswith("ray://"):
        raise UserError(f"--backend {name}: no such backend; use local, ray, ray://HOST:PORT or slurm")
    limits = experiment.limits
    if limits != Limits(minutes=limits.minutes):
        raise UserError(f"--backend {name}: limits of dollars, calls or tokens hold one process; use --backend local")
    if experiment.racing:
        raise UserError(f"--backend {name}: a race reads all arms side by side; leave out `racing`, or run it locally")
    return measure_on_slurm if name == "slurm" else partial(measure_on_ray, name if name != "ray" else "")


def measure_on_workers(
    context: RunContext, backend: Backend, missing: Mapping[str, Cell], track: BackgroundSync
) -> None:
    """Measure the missing cells, which lie in the store afterwards, until all are done or a limit or Ctrl-C ends it.

    MLflow is sent what is finished, while the rest is measured.
    """
    experiment, progress = context.experiment, context.progress
    # The run holds the limit of minutes; a worker's clock would start anew with every worker.
    job = Job(uuid.uuid4().hex, replace(experiment, limits=Limits()), context.store.resolve(), context.threads)
    progress.expect(expected_shares(experiment, list(missing.values()), context.tasks))
    progress.start_cell(1, f"{len(missing)} cells on workers")
    progress.note("note: every arm is timed by itself on its worker, not side by side with the others")
    try:
        for n, outcome in enumerate(backend(job, missing, context.allowance), 1):
            context.failures += outcome.failures
            failed = [f"warning: {f}" for f in outcome.failures]
            for line in dict.fromkeys([*outcome.warnings, *failed]):
                progress.note(line)
            progress.finish_cell()
            if n < len(missing):
                progress.start_cell(n + 1, f"cells left on workers: {len(missing) - n}")
            track.send()
    except Stopped:
        # What is finished is in the store, and `allowance` knows the reason.
        return
