"""`validate` finds what a run would stumble over, and `run` asks it first: nothing is loaded or paid before."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from openings import write_openings

from crossover.eval.cli.main import main

STEPS = """
import dspy

class Steps(dspy.Module):
    def __init__(self):
        self.think = dspy.Predict("text -> hint: int")
        self.answer = dspy.Predict("text, hint: int -> label")

    def forward(self, text):
        return self.answer(text=text, hint=self.think(text=text).hint)

class Broken(dspy.Module):
    def __init__(self):
        self.answer = dspy.Predict("text -> label")

    def forward(self, text):
        return self.answers(text=text)
"""


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_faults_of_keys_weights_and_methods_come_at_once(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "empty").mkdir()
    file = write_openings(tmp_path, "[zero_shot, {sft: {adapter: loro}}]")
    models = "models=[openai/gpt-4o-mini, local:empty]"
    assert main([verb, str(file), "--set", models]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: local:{tmp_path}/empty: no weights (*.safetensors) here; give a model's folder",
        "error: openai/gpt-4o-mini: OPENAI_API_KEY is not set; export OPENAI_API_KEY=…",
        "error: sft adapter=loro: sft adapter 'loro' is not one of lora, dora, qlora, none; set `adapter: lora`",
    ]
    assert not (tmp_path / "mlruns").exists()


def test_a_wrong_key_is_found_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    file = write_openings(tmp_path, "[zero_shot, sft]", more="metod: 1\nretrieval: {backend: hybrid}\n")
    loaded = "', '.join({'dspy', 'numpy', 'torch', 'transformers', 'mlflow', 'litellm'} & set(sys.modules))"
    for verb in ("run", "validate"):
        code = f"import sys, crossover.eval.cli.main as c; c.main(['{verb}', '{file}']); sys.exit({loaded} or 0)"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, "unknown key `metod`" in done.stderr) == (0, True)


@pytest.mark.parametrize(
    ("program", "methods", "problem"),
    [
        ("Steps", "[head]", "error: openings, head: head gives one label by one predictor, and this program does more"),
        ("Broken", "[zero_shot]", "error: openings: the program fails on a row: "),
        ("Steps", "[zero_shot, bootstrap, {chain: [bootstrap, sft]}]", ""),
    ],
)
def test_each_method_is_fitted_dry_to_the_program(
    program: str, methods: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steps.py").write_text(STEPS)
    file = write_openings(tmp_path, methods)
    settings = ["--set", f"tasks.openings.program=./steps.py:{program}"]
    assert main(["validate", str(file), *settings]) == (2 if problem else 0)
    assert capsys.readouterr().err.startswith(problem)
    if problem:
        assert main(["run", str(file), *settings, "--store", str(tmp_path / "mlruns"), "-q"]) == 2
        assert problem in capsys.readouterr().err
        assert not list(tmp_path.glob("mlruns/cells/*"))


def test_targets_of_a_teacher_need_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_openings(tmp_path, "[zero_shot, {chain: [few_shot, {sft: {targets: teacher}}]}]")
    assert main(["validate", str(file)]) == 2
    error = "error: few_shot > sft targets=teacher: `targets: teacher` without a teacher; add `teacher: openai/…` "
    assert capsys.readouterr().err.startswith(error)


def test_a_damaged_tokenizer_is_found_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(tiny.FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    os.truncate(folder / "tokenizer.json", 100)
    (folder / "model.safetensors").touch()
    file = write_openings(tmp_path, "[zero_shot]")
    assert main(["validate", str(file), "--set", "models=[local:model]"]) == 2
    assert "tokenizer.json is not valid JSON" in capsys.readouterr().err


def test_a_run_that_is_finished_is_printed_without_the_checks(
    openings_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(openings_run / "openings.yaml"), "--store", str(openings_run / "mlruns"), "-q"]) == 0
    assert "USE " in capsys.readouterr().out
