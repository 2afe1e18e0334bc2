"""Experiment files and settings that cannot be run end with exit 2 and lines that begin with `error: `."""

import os
from pathlib import Path

import pytest
from bad_input import DEEP, EXPERIMENT, Capture, nested, refused, sound_folder

from crossover.eval.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a sound experiment, in which the verbs run."""
    return sound_folder(tmp_path, monkeypatch)


def bomb(levels: int = 30) -> str:
    """Return YAML of a few lines that stands for ten to the power of `levels` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


TEXTS: dict[str, bytes | str] = {
    "empty": "",
    "blank": "\n\n  \n",
    "comment": "# nothing\n",
    "null": "~",
    "scalar": "text",
    "list": "- a\n- b\n",
    "number": "7",
    "zeros": bytes(500),
    "binary": bytes(range(256)),
    "latin": EXPERIMENT.replace("name: n", "name: é").encode("latin-1"),
    "utf-16": EXPERIMENT.encode("utf-16")[:-1],
    "brackets": nested("[", "]"),
    "braces": nested("{a: ", "}"),
    "dashes": "- " * DEEP,
    "bomb": bomb(),
    "bomb in place": EXPERIMENT + "needs: &a {volume_per_month: 1}\n" + bomb(),
    "loop": "&a [*a]",
    "loop in place": EXPERIMENT.replace("[zero_shot,", "&a [zero_shot, *a,"),
    "loop of keys": "&a {*a : 1}",
    "open": "{a: [b",
    "tab": "a:\n\t- b",
    "two documents": "a: 1\n---\nb: 2\n",
    "directive": "%YAML 9.9\n---\na: 1\n",
    "bell": EXPERIMENT.replace("name: n", "name: \x07"),
    "escape": EXPERIMENT.replace("name: n", r'name: "\x1b[31m\x07"') + "no: 1\n",
    "escape in a key": EXPERIMENT + '"\\x1b[2Jx": 1\n',
    "half a character": EXPERIMENT.replace("name: n", r'name: "\ud800"'),
    "zero in a path": EXPERIMENT.replace("a.jsonl", r'"a\0.jsonl"'),
    "twice": EXPERIMENT + "name: m\n",
    "merge": EXPERIMENT + "<<: {seeds: [1]}\n",
    "key of a list": EXPERIMENT + "? [a, b]\n: c\n",
    "key in a task": EXPERIMENT.replace("program:", "? [a]\n    : b, program:"),
    "python": EXPERIMENT.replace("name: n", "name: !!python/object/apply:os.system [x]"),
    "unknown tag": EXPERIMENT.replace("name: n", "seeds: !mine 1"),
    "set": EXPERIMENT + "seeds: !!set {a, b}\n",
    "omap": EXPERIMENT + "seeds: !!omap [a: 1]\n",
    "binary tag": EXPERIMENT + "seeds: [!!binary é]\n",
    "int tag": EXPERIMENT + "seeds: [!!int abc]\n",
    "long number": EXPERIMENT + f"seeds: [{'9' * DEEP}]\n",
    "long file": "# " + "x" * 250_000,
    "long line": EXPERIMENT + "no: " + "x" * 100_000,
    "home of nobody": EXPERIMENT.replace("a.jsonl", "~nobody-of-that-name/a.jsonl"),
    "long path": EXPERIMENT.replace("a.jsonl", "x" * 5000),
    "folder for data": EXPERIMENT.replace("a.jsonl", "."),
    "list for a path": EXPERIMENT.replace("a.jsonl", "[a, b]"),
    "long model": EXPERIMENT.replace("openai/x", "local:./" + "x" * 5000),
    "model of nobody": EXPERIMENT.replace("openai/x", "local:~nobody-of-that-name/x"),
    "model is a list": EXPERIMENT.replace("openai/x", "[a]"),
    "base is a list": EXPERIMENT.replace('"http://127.0.0.1:9/v1"', '["${HOME}"]'),
    "model keys": EXPERIMENT.replace("api_base:", "[a]: b, api_base:"),
    "method is a list": EXPERIMENT.replace("zero_shot", "[zero_shot]"),
    "method is empty": EXPERIMENT.replace("zero_shot", "{}"),
    "chain": EXPERIMENT.replace("zero_shot", "{chain: [[a], {}, ~]}"),
    "program": EXPERIMENT.replace("classify", "[]"),
    "own program": EXPERIMENT.replace("classify", "x.yaml:Name"),
    "program of nowhere": EXPERIMENT.replace("classify", "no.py:Name"),
}
"""Experiment files that cannot be run."""


@pytest.mark.parametrize("name", TEXTS)
def test_bad_experiment_files(folder: Path, capsys: Capture, name: str) -> None:
    text = TEXTS[name]
    (folder / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(capsys, "validate", "x.yaml")
    refused(capsys, "run", "x.yaml", "--dry-run")


SETTINGS = [
    "name",
    "=",
    "=a",
    "name=[a",
    "name=[a]",
    "name={}",
    "name=&a [*a]",
    "name=" + nested("[", "]"),
    'name="\\ud800"',
    "a.b.c=1",
    "tasks.0=~",
    "tasks.9.name=a",
    f"tasks.{'9' * DEEP}.name=a",
    "tasks.-1.name=a",
    "tasks..name=a",
    "tasks.t.data=5",
    "tasks.t.data=[a]",
    "tasks.t.data.test=[]",
    "tasks.t.fields=[a]",
    "tasks.t.fields={text: {}, label: []}",
    "tasks.t.input={}",
    "tasks.t.input=[[a]]",
    "tasks.t.output={[a]: b}",
    "tasks.t.output={label: [x]}",
    "tasks.t.split=5",
    "tasks.t.split={val: 2020-13-45}",
    "tasks.t.metric={judge: 5}",
    "tasks.t.metric={judge: {model: [], criteria: 5}}",
    "tasks.t.metric=no.py:f",
    "tasks.t.corpus=[a]",
    "tasks.t.cluster=[a]",
    "models=[]",
    "models=[[]]",
    "models=[~]",
    "models=[5]",
    "models.0.max_tokens=2020-13-45",
    "models.0.max_tokens=" + "9" * DEEP,
    "models.0.max_tokens=0x",
    "models.0.temperature=.nan",
    "models.0.temperature=1e999",
    "models.0.timeout=-1",
    "models.0.api_key=[a]",
    "models.0.prompt_format=[]",
    "models.0.decode={}",
    "methods=[[]]",
    "methods=[{few_shot: {demos: x}}]",
    "methods=[{few_shot: {demos: 1.5}}]",
    "methods=[{few_shot: []}]",
    "methods=[{[few_shot]: {}}]",
    "train_sizes=[0]",
    "train_sizes=[1e400]",
    "knowledge=[[]]",
    "knowledge=[{train: [], test: {}}]",
    "retrieval=5",
    "retrieval=[[]]",
    "retrieval={backend: []}",
    "retrieval={k: 0}",
    "retrieval={? [a] : 1}",
    "seeds=[true]",
    "seeds=[-1]",
    "seeds=[1.5]",
    "seeds=[.nan]",
    "seeds={}",
    "limits=[]",
    "limits.usd=.inf",
    "limits.minutes=-1",
    "limits.calls=12:61:99",
    "needs.refresh_months=0",
    "needs.min_score=!!timestamp x",
    "prices=5",
    "prices.machine_hour_usd=!!binary ä",
    "budget.metric_calls=0",
    "teacher=[]",
    "racing=maybe",
    "version=2",
    "version=[1]",
    "version=!!int abc",
    "retention=[[]]",
    "name=${NO_SUCH_VARIABLE}",
]


@pytest.mark.parametrize("setting", SETTINGS, ids=[s[:40] for s in SETTINGS])
def test_bad_settings(folder: Path, capsys: Capture, setting: str) -> None:
    refused(capsys, "run", "x.yaml", "--dry-run", "--set", setting)


@pytest.mark.parametrize("value", ["2020-13-45", "2024-05-01", "24:61:00", "0o9", "1_000", "on", ".5.5"])
def test_a_value_that_looks_like_another_is_a_text_where_a_text_belongs(
    folder: Path, capsys: Capture, value: str
) -> None:
    assert main(["plan", "x.yaml", "--set", f"name={value}"]) == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["validate", "x" * 5000],
        ["validate", "."],
        ["validate", "pipe"],
        ["run", "pipe"],
        ["run", "x" * 5000 + ".csv"],
        ["init", "pipe.csv", "--yes"],
        ["init", "x" * 5000],
        ["init", "x" * 5000 + ".csv", "--yes"],
        ["init", "x.yaml"],
        ["compare", "pipe", "pipe2"],
        ["compare", "x" * 5000, "y" * 5000],
        ["compare", "a\x1b[31m", "b"],
        ["index", "pipe"],
        ["index", "a.jsonl", "--backend", "\x1b[31m"],
        ["index", "a.jsonl", "--set", "k=2020-13-45"],
        ["index", "x" * 5000],
        ["show", "x" * 5000],
        ["show", "../../etc"],
        ["export", "winner", "x" * 5000],
        ["report", "x" * 5000],
        ["report", "x.yaml", "-o", "x" * 5000 + ".html"],
        ["recommend", "\x1b[31m"],
        ["run", "x.yaml", "--only", "\x1b[31m"],
        ["run", "x.yaml", "--seeds", "9" * DEEP],
        ["run", "x.yaml", "--store", "x" * 5000],
        ["run", "x.yaml", "--store", "a.jsonl"],
        ["run", "x.yaml", "--baseline", "pipe"],
        ["human-sheet", "x.yaml", "--import", "pipe"],
        ["ls", "\x1b[31m"],
        ["\x1b[31m"],
        ["fetch", "\x1b[31m"],
        ["fetch", "local:pipe.gguf"],
    ],
    ids=lambda argv: " ".join(argv)[:40].encode("unicode_escape").decode(),
)
def test_bad_arguments(folder: Path, capsys: Capture, argv: list[str]) -> None:
    for name in ("pipe", "pipe2", "pipe.csv", "pipe.gguf"):
        os.mkfifo(folder / name)
    refused(capsys, *argv)
