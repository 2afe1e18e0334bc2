"""Fit and score cells as the jobs of a Slurm array, through submitit; one that is pre-empted is queued again.

Partition, account, time and GPUs are Slurm's own settings: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT,
SBATCH_GPUS. `slurm:local` runs the same jobs as processes of this machine, so that they can be tried without Slurm.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crossover.eval.experiment.spec import Cell
from crossover.eval.run.backends.worker import Job, Outcome, failure, score_cell
from crossover.models.errors import UserError
from crossover.models.limits import UsageLimits

HOURS = 24
"""Time of a job, unless SBATCH_TIMELIMIT says otherwise."""
LOOK_EVERY = 1.0
"""Seconds between looks at the jobs."""


class Requeued:
    """Score a cell in a job that goes on from the cell's rows when Slurm has taken its node away."""

    def __call__(self, job: Job, key: str, cell: Cell) -> Outcome:
        """Score the cell."""
        return score_cell(job, key, cell)

    def checkpoint(self, *arguments: Any) -> Any:
        """Return the same call, which submitit queues again when SIGUSR2 announces the end of the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def score_on_slurm(cluster: str, job: Job, cells: Mapping[str, Cell], limits: UsageLimits) -> Iterator[Outcome]:
    """Fit and score cells, each in a job whose log is `slurm/KEY.out` and `slurm/KEY.err` of the store.

    `cluster` is submitit's name for where jobs run: `slurm` or `local`.

    Raises:
        UserError: submitit is not installed, or Slurm refuses the jobs.
        Stopped: a limit was reached; the jobs are cancelled.
    """
    try:
        import submitit
    except ImportError as e:
        raise UserError("--backend slurm needs submitit; pip install 'crossover[slurm]'") from e
    folder = job.store / "slurm"
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(name="crossover", timeout_min=60 * HOURS)
    # Slurm queues what has no room; processes of this machine would all start at once, with a vLLM server for each.
    servers = any(cell.model.starts_vllm for cell in cells.values())
    at_once = len(cells) if cluster == "slurm" else 1 if servers else os.cpu_count() or 1
    for first in range(0, len(cells), at_once):
        keys = list(cells)[first : first + at_once]
        try:
            submitted = executor.map_array(Requeued(), *zip(*((job, k, cells[k]) for k in keys), strict=True))
        except submitit.core.utils.FailedJobError as e:
            raise UserError(f"--backend slurm: {e}") from e
        waiting = dict(zip(keys, submitted, strict=True))
        for key, sent in waiting.items():
            name_log(sent.paths.stdout, folder / f"{key}.out")
            name_log(sent.paths.stderr, folder / f"{key}.err")
        try:
            while waiting:
                for key in [k for k, sent in waiting.items() if sent.done()]:
                    yield outcome_of(waiting.pop(key), key, cells[key])
                limits.wait(LOOK_EVERY if waiting else 0)
        finally:
            for sent in waiting.values():
                sent.cancel()


def name_log(log: Path, name: Path) -> None:
    """Let the name lead to a job's log, which submitit calls by the number of the job."""
    name.unlink(missing_ok=True)
    name.symlink_to(log.name)


def outcome_of(sent: Any, key: str, cell: Cell) -> Outcome:
    """Return what a job that is over reported; a failure when it ended without a report."""
    error = sent.exception()
    if error is None:
        return Outcome(*sent.result())
    return Outcome(key, failure(cell, f"its job {sent.job_id} ended early; see slurm/{key}.err of the store"))
