"""Measure cells as Ray tasks; a task whose worker or node dies is started again on another."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from crossover.eval.experiment.spec import Cell
from crossover.eval.run.backends.worker import Job, Outcome, failure, measure_cell
from crossover.models.api_keys import SECRET_NAMES
from crossover.models.errors import UserError
from crossover.models.limits import UsageLimits
from crossover.models.load import source_of
from crossover.models.model_folder import stored_bytes
from crossover.models.spec import ModelSpec

RETRIES = 10
"""How often a cell is started again after the death of its worker."""
SETTINGS = ("CROSSOVER_", "LITELLM_", "HF_HUB_", "TOKENIZERS_", "OMP_NUM_THREADS", "DO_NOT_TRACK")
"""Beginnings of the environment variables that workers take over from the run."""
LOOK_EVERY = 0.5
"""Seconds between looks at the limits of the run."""
WEIGHTS_TO_MEMORY = 2
"""Bytes of memory asked for a byte of weights: they may be read at twice their precision."""


def measure_on_ray(address: str, job: Job, cells: Mapping[str, Cell], limits: UsageLimits) -> Iterator[Outcome]:
    """Measure cells on the cluster at an address; empty for the one that Ray finds, or a new one on this machine.

    Raises:
        UserError: Ray is not installed, or no cluster answers at the address.
        Stopped: a limit was reached; the tasks end with the connection.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as e:
        raise UserError("--backend ray needs Ray; pip install 'crossover[ray]'") from e
    # Keys stay out: Ray would show them to whoever reaches its cluster.
    settings = {k: v for k, v in os.environ.items() if k.startswith(SETTINGS) and not SECRET_NAMES.search(k)}
    try:
        ray.init(
            address=address or None,
            runtime_env={"env_vars": settings},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise UserError(f"--backend ray{address.removeprefix('ray')}: {e}; start the cluster, or leave it out") from e
    try:
        gpus = ray.cluster_resources().get("GPU", 0) > 0
        task = ray.remote(measure_cell)
        waiting = {}
        for key, cell in cells.items():
            needed = resources_of(cell.model, gpus=gpus)
            waiting[task.options(max_retries=RETRIES, name=key, **needed).remote(job, key, cell)] = key
        while waiting:
            limits.check()
            done, _ = ray.wait(list(waiting), timeout=LOOK_EVERY)
            for ref in done:
                key = waiting.pop(ref)
                try:
                    yield ray.get(ref)
                except ray.exceptions.RayError as e:
                    yield Outcome(key, [failure(cells[key], f"{type(e).__name__} {RETRIES + 1} times")], [])
    finally:
        ray.shutdown()


def resources_of(model: ModelSpec, *, gpus: bool) -> dict[str, float]:
    """Return what Ray sets aside for a cell; a local model has memory, and a GPU of its own where there are `gpus`."""
    if not model.runs_here:
        return {"num_cpus": 1}
    folder = source_of(model)
    # The size of weights that the hub's cache holds is not looked up: Ray then asks for no memory.
    weights = stored_bytes(folder) if isinstance(folder, Path) else 0
    return {"num_cpus": 1, "num_gpus": int(gpus), "memory": WEIGHTS_TO_MEMORY * weights}
