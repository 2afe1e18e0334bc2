"""What is installed claims one import name, so that a person's own modules never collide with it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from openai_server import openai_server
from remote_experiment import first_word, write_remote

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "dspy", "mlflow", "transformers")
DATA = (
    "eval/experiment/quickstart.yaml",
    "eval/experiment/starter/crossover.yaml",
    "eval/report/template/page.html",
)
"""Files of the package that are no code."""


def run_python(*args: str, cwd: Path, path: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": path, "OPENAI_API_KEY": "unused"}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_persons_own_modules_do_not_collide(tmp_path: Path) -> None:
    for name in ("models", "eval", "programs", "optimizers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a module of the person was imported')\n")
    (tmp_path / "finetune.py").write_text("raise ImportError('a module of the person was imported')\n")
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        argv = ["-m", "crossover.eval.cli.main", "run", file.name, "--tracking-uri", "none", "--no-progress"]
        done = run_python(*argv, cwd=tmp_path, path=os.pathsep.join([".", str(ROOT)]))
    assert done.returncode == 0, done.stderr
    assert "zero_shot" in done.stdout


def test_the_version_is_told_without_loading_anything_heavy(tmp_path: Path) -> None:
    code = f"import sys, crossover; print(crossover.__version__); print(sorted({{*{HEAVY}}} & set(sys.modules)))"
    done = run_python("-c", code, cwd=tmp_path, path=str(ROOT))
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr
    assert done.stdout[0].isdecimal()


def test_the_wheel_holds_one_package_with_its_data(tmp_path: Path) -> None:
    done = run_python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=ROOT, path="")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"crossover"}
    assert {f"crossover/{n}" for n in DATA} <= set(names)
    assert [n for n in names if "__pycache__" in n or n.endswith(".db")] == []
