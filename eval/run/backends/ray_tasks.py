"""Fit and score cells as Ray tasks; a task whose worker or node dies is started again on another."""

import logging
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from crossover.eval.experiment.spec import Cell
from crossover.eval.run.backends.worker import Job, Outcome, failure, score_cell
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
LOOPBACK = "127.0.0.1"
LOOK_EVERY = 0.5
"""Seconds between looks at the limits of the run."""
WEIGHTS_TO_MEMORY = 2
"""Bytes of memory asked for a byte of weights: they may be read at twice their precision."""


def score_on_ray(address: str, job: Job, cells: Mapping[str, Cell], limits: UsageLimits) -> Iterator[Outcome]:
    """Fit and score cells on the cluster at an address, or on a new one on this machine where it is empty.

    Raises:
        UserError: Ray is not installed, no cluster answers at the address, or a new one would listen on the network.
        Stopped: a limit was reached; the tasks end with the connection.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not address:
        # Before Ray is imported. Otherwise it reads 127.0.0.1 as the machine's address in the network.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError as e:
        raise UserError("--backend ray needs Ray; pip install 'crossover[ray]'") from e
    try:
        _connect(ray, address)
        gpus = ray.cluster_resources().get("GPU", 0) > 0
        task = ray.remote(score_cell)
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
                    yield Outcome(key, failure(cells[key], f"{type(e).__name__} {RETRIES + 1} times"))
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    # Keys stay out: Ray would show them to whoever reaches its cluster.
    settings = {k: v for k, v in os.environ.items() if k.startswith(SETTINGS) and not SECRET_NAMES.search(k)}
    init = partial(ray.init, runtime_env={"env_vars": settings}, log_to_driver=False, logging_level=logging.ERROR)
    try:
        if address:
            init(address)
            return
        init("local", include_dashboard=False, _node_ip_address=LOOPBACK)
    except (ConnectionError, RuntimeError, ValueError) as e:
        what = f"no cluster at {address}" if address else "no cluster could be started"
        raise UserError(f"--backend ray: {what} ({e}); start one, and name it in RAY_ADDRESS") from e
    if any(node["NodeManagerAddress"] != LOOPBACK for node in ray.nodes()):
        what = "this version of Ray would listen on the network"
        raise UserError(f"--backend ray: {what}; start a cluster yourself, and name it in RAY_ADDRESS")


def resources_of(model: ModelSpec, *, gpus: bool) -> dict[str, float]:
    """Return what Ray sets aside for a cell; a local model has memory, and a GPU of its own where there are `gpus`."""
    if not model.runs_here:
        return {"num_cpus": 1}
    folder = source_of(model)
    # The size of weights that the hub's cache holds is not looked up: Ray then asks for no memory.
    weights = stored_bytes(folder) if isinstance(folder, Path) else 0
    return {"num_cpus": 1, "num_gpus": int(gpus), "memory": WEIGHTS_TO_MEMORY * weights}
