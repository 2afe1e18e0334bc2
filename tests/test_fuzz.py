"""Whatever a file holds, a person sees a `UserError` or a list of problems, never a traceback."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossover.eval.experiment.read import read_partly
from crossover.eval.store.foreign import read_operands
from crossover.eval.store.result import read_rows
from crossover.eval.store.rows import read_table
from crossover.models.errors import UserError
from crossover.programs.data import load_and_check
from crossover.programs.spec import TaskSpec

SOUND: dict[str, Any] = {
    "version": 1,
    "name": "n",
    "tasks": ["stdlib_module", {"name": "t", "program": "classify", "data": {"train": "a.jsonl"}}],
    "models": ["smollm2", {"name": "openai/x", "max_tokens": 3}],
    "methods": ["zero_shot", {"few_shot": {"demos": 2}}],
    "train_sizes": [4],
    "knowledge": ["none"],
    "retrieval": {"backend": "bm25", "k": 3},
    "seeds": [0],
    "limits": {"usd": 1},
    "needs": {"volume_per_month": 10},
    "prices": {"machine_hour_usd": 1},
    "budget": {"usd": 1},
    "teacher": "openai/y",
}
ROW: dict[str, Any] = {
    "id": "a",
    "score": 1.0,
    "failure": "",
    "prompt_tokens": 1,
    "cached_tokens": 0,
    "completion_tokens": 1,
    "calls": 1,
    "seconds": 0.1,
    "usd": 0.0,
    "output": {"label": "x"},
    "text": "some text",
    "label": "x",
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["${X}", "../..", "1e999"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, sound: dict[str, Any]) -> Any:
    """Return a sound mapping with a few of its parts replaced, removed or added."""
    data = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = data
        while draw(st.booleans()):
            inner = [
                v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list) and v
            ]
            if not inner:
                break
            place = draw(st.sampled_from(inner))
        if isinstance(place, list):
            place[draw(st.integers(0, len(place) - 1))] = draw(VALUES)
        else:
            place[draw(st.sampled_from(sorted(place)) | st.text(max_size=8))] = draw(VALUES)
    return data


TEXTS = st.one_of(
    changed(SOUND).map(lambda d: yaml.safe_dump(d).encode()),
    st.binary(max_size=200),
    st.text(max_size=200).map(str.encode),
)
SOUND_LINE, DAMAGED_LINE = st.just(json.dumps(ROW).encode()), changed(ROW).map(lambda d: json.dumps(d).encode())
LINES = st.lists(DAMAGED_LINE | st.binary(max_size=60) | SOUND_LINE, max_size=6).map(b"\n".join)


def tried(action: Callable[[], object]) -> None:
    """Do something that may end in an error for people, and in no other."""
    with contextlib.suppress(UserError):
        action()


def check_experiment(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.yaml"
        file.write_bytes(text)
        tried(lambda: read_partly(file))


def check_rows(lines: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.jsonl"
        file.write_bytes(lines)
        tried(lambda: read_table(file))
        tried(lambda: read_operands([str(file), str(file)], Path(folder)))
        tried(lambda: list(read_rows(file)))


def check_data(lines: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"x{suffix}"
        file.write_bytes(lines)
        data = {"train": str(file), "test": str(file)}
        source = TaskSpec("t", "classify", data, {"text": "input", "label": "output"})
        tried(lambda: load_and_check(source))


def fuzzed(most: int) -> Any:
    return settings(max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck))


CI, NIGHTLY = fuzzed(66), fuzzed(3400)
FOUND = [b"retrieval: {backend: []}", b"retrieval: {? [a] : 1}"]
"""What has broken the reader before."""
test_experiment_files = CI(given(TEXTS)(check_experiment))
test_rows = CI(given(LINES)(check_rows))
test_data = CI(given(LINES, st.sampled_from([".jsonl", ".csv", ".parquet", ".txt"]))(check_data))
test_many_experiment_files = pytest.mark.nightly(NIGHTLY(given(TEXTS)(check_experiment)))
test_many_rows = pytest.mark.nightly(NIGHTLY(given(LINES)(check_rows)))
test_many_data = pytest.mark.nightly(NIGHTLY(given(LINES, st.sampled_from([".jsonl", ".csv", ".parquet"]))(check_data)))


@pytest.mark.parametrize("text", FOUND)
def test_what_has_been_found_stays_mended(text: bytes) -> None:
    check_experiment(text)
