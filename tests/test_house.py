"""The house keeps its shape: arrows one way, seams where they belong, nothing done at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "models": set(),
    "programs": set(),
    "optimizers": {"models", "programs"},
    "finetune": {"models", "programs"},
    "eval": {"models", "programs", "optimizers", "finetune"},
}
SEAMS = {
    # MLflow runs registered.py itself, from a copy; no other file of ours imports that one.
    "mlflow": ["eval/tracking/tracker.py", "eval/tracking/registered.py"],
    "torch": ["models/", "finetune/"],
    "transformers": ["models/", "finetune/", "programs/retrieval/embedding.py"],
    "sentence_transformers": ["programs/retrieval/embedding.py", "models/embedded/meaning.py"],
    "peft": ["models/", "finetune/"],
    "trl": ["models/", "finetune/"],
    "weaviate": ["programs/retrieval/weaviate"],
    "ray": ["eval/cluster.py"],
}
RUN_BY_MLFLOW = Path("eval/tracking/registered.py")
"""Importing it registers a model."""
FILES = [f.relative_to(ROOT) for room in ROOMS for f in sorted((ROOT / room).rglob("*.py"))]


def imported(file: Path) -> set[str]:
    """Return the top-level names that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("file", FILES, ids=str)
def test_arrows_go_one_way(file: Path) -> None:
    room = file.parts[0]
    assert (imported(file) & set(ROOMS)) - {room} <= ROOMS[room]


@pytest.mark.parametrize("package", SEAMS)
def test_a_seam_is_crossed_in_its_own_file_only(package: str) -> None:
    outside = [str(f) for f in FILES if package in imported(f) and not str(f).startswith(tuple(SEAMS[package]))]
    assert outside == []


def test_what_mlflow_runs_is_imported_by_nobody() -> None:
    assert [f for f in FILES if "eval.tracking.registered" in (ROOT / f).read_text(encoding="utf-8")] == []


def test_the_layering_test_can_fail() -> None:
    assert imported(Path("eval/run.py")) & {"programs", "models"} == {"programs", "models"}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_files_stay_readable(file: Path) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.count("\n") <= 300 or file.parts[:2] == ("models", "embedded")
    for forbidden in ("TO" + "DO", "pickle.load", "mock.patch", "trust_remote_code=" + "True"):
        assert forbidden not in text


def test_importing_every_room_leaves_the_folder_empty(tmp_path: Path) -> None:
    names = [".".join(f.with_suffix("").parts) for f in FILES if f.name != "__init__.py" and "pretrain" not in f.name]
    names.remove(".".join(RUN_BY_MLFLOW.with_suffix("").parts))
    code = "import " + ", ".join(names)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
