"""The house keeps its shape: arrows one way, no circles, third-party packages where they belong, clean imports."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "models": set(),
    "programs": {"models"},
    "optimizers": {"models", "programs"},
    "finetune": {"models", "programs"},
    "eval": {"models", "programs", "optimizers", "finetune"},
}
"""Root package to the others that it may import."""
EVAL = ("cli", "run", "tracking", "report", "analysis", "store", "experiment")
"""The packages of eval/: each may import those that stand to its right."""
SEAMS = {
    "mlflow": ["eval/tracking/"],
    "torch": ["models/", "finetune/"],
    "transformers": ["models/", "finetune/", "programs/retrieval/embedding.py"],
    "sentence_transformers": ["programs/retrieval/embedding.py"],
    "peft": ["models/", "finetune/"],
    "trl": ["models/", "finetune/"],
    "weaviate": ["programs/retrieval/weaviate"],
    "ray": ["eval/run/backends/"],
    "submitit": ["eval/run/backends/"],
}
"""Third-party package to the paths that may import it."""
RUN_BY_MLFLOW = "eval/tracking/registered.py"
"""Importing it registers a model."""
FILES = [str(f.relative_to(ROOT)) for name in PACKAGES for f in sorted((ROOT / name).rglob("*.py"))]


@cache
def imported(file: str) -> frozenset[str]:
    """Return the full names of the modules that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module or "", *(f"{node.module}.{a.name}" for a in node.names)}
    return frozenset(names)


def ours(file: str) -> list[list[str]]:
    """Return the modules of this project that a file imports, as the parts of their path under the root."""
    return [name.split(".")[1:] for name in imported(file) if name.startswith("crossover.")]


def reachable(start: str, arrows: dict[str, set[str]]) -> set[str]:
    """Return the files that a file reaches by following imports."""
    seen, waiting = set[str](), [*arrows[start]]
    while waiting:
        if (file := waiting.pop()) not in seen:
            seen.add(file)
            waiting += arrows[file]
    return seen


def test_every_file_imports_the_project_by_its_one_name() -> None:
    bare = {(f, n) for f in FILES for n in imported(f) if n.partition(".")[0] in PACKAGES}
    assert bare == set()


def test_root_packages_import_one_way() -> None:
    arrows = {(f.split("/")[0], parts[0]) for f in FILES for parts in ours(f) if parts[0] in PACKAGES}
    assert {(a, b) for a, b in arrows if a != b and b not in PACKAGES[a]} == set()


def test_the_packages_of_eval_import_one_way() -> None:
    inner = [f for f in FILES if f.startswith("eval/") and f != "eval/__init__.py"]
    assert {f.split("/")[1] for f in inner} == set(EVAL)
    up = [
        (f, ".".join(parts))
        for f in inner
        for parts in ours(f)
        if parts[0] == "eval" and EVAL.index(parts[1]) < EVAL.index(f.split("/")[1])
    ]
    assert up == []


def test_no_file_reaches_itself() -> None:
    known = set(FILES)
    arrows = {f: {g for parts in ours(f) if (g := "/".join(parts) + ".py") in known} for f in FILES}
    assert [f for f in FILES if f in reachable(f, arrows)] == []


@pytest.mark.parametrize("package", SEAMS)
def test_third_party_packages_are_imported_where_they_belong(package: str) -> None:
    users = [f for f in FILES if any(n.partition(".")[0] == package for n in imported(f))]
    assert users != []
    assert [f for f in users if not f.startswith(tuple(SEAMS[package]))] == []


def test_what_mlflow_runs_is_imported_by_nobody() -> None:
    assert [f for f in FILES if "crossover.eval.tracking.registered" in imported(f)] == []


def test_files_stay_readable() -> None:
    for file in FILES:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert text.count("\n") <= 300, file
        for forbidden in ("TO" + "DO", "pickle.load", "mock.patch", "trust_remote_code=" + "True", "# fmt: "):
            assert forbidden not in text, (file, forbidden)


@pytest.mark.slow
def test_importing_everything_leaves_the_folder_empty(tmp_path: Path) -> None:
    modules = [f for f in FILES if not f.endswith("__init__.py") and f != RUN_BY_MLFLOW]
    code = "import " + ", ".join("crossover." + f.removesuffix(".py").replace("/", ".") for f in modules)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True, timeout=600)
    assert list(tmp_path.iterdir()) == []
