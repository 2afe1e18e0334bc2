"""The files that start servers, clusters and trainings are read by the tools that they are for."""

import json
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from remote_experiment import write_remote

from crossover.eval.experiment.read import read_experiment
from crossover.eval.run.methods import launch_lines

DEPLOY = Path(__file__).parent.parent / "examples" / "deploy"


def test_the_cluster_fits_the_schema_of_ray() -> None:
    found = find_spec("ray")
    assert found is not None
    assert found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((DEPLOY / "ray.yaml").read_text()), schema)


def test_bash_reads_the_job() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)


@pytest.mark.parametrize(("name", "kind"), [("fsdp", "FSDP"), ("deepspeed", "DEEPSPEED")])
def test_accelerate_reads_its_configuration(name: str, kind: str) -> None:
    config = load_config_from_file(str(DEPLOY / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes) == (kind, 2)


def test_every_server_is_on_loopback_and_mlflow_has_the_driver_of_its_database() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"postgres", "mlflow", "weaviate", "vllm"}
    assert all(port.startswith("127.0.0.1:") for s in services.values() for port in s.get("ports", []))
    project = tomllib.loads((DEPLOY.parent.parent / "pyproject.toml").read_text())["project"]
    (driver,) = project["optional-dependencies"]["postgres"]
    assert driver in services["mlflow"]["command"][-1]


def test_a_plan_names_the_command_of_its_trainings(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("{distributed_type: MULTI_CPU, num_processes: 2}")
    methods = f"[zero_shot, {{sft: {{accelerate_file: '{file}'}}}}, {{sft: {{accelerate_file: '{file}', rank: 4}}}}]"
    experiment, _ = read_experiment(write_remote(tmp_path, "http://127.0.0.1:9/v1", methods=methods))
    assert experiment is not None
    (line,) = launch_lines(experiment)
    assert line.startswith(f"{file} starts each training by: ")
    assert "-m torch.distributed.run --standalone --nproc_per_node 2 -m crossover.finetune.training.launch" in line
