"""A sound experiment to spoil, and what every verb must do with a spoilt one."""

import json
import re
import signal
from pathlib import Path

import pytest

from crossover.eval.cli.main import main

signal.signal(signal.SIGALRM, signal.default_int_handler)
Capture = pytest.CaptureFixture[str]
DEEP = 5000
ROWS = [{"text": f"question {n} of {'abcdefgh'[n % 8]}", "label": f"kind{n % 2}"} for n in range(40)]
EXPERIMENT = """\
version: 1
name: n
tasks:
  - {name: t, program: classify, data: {train: a.jsonl, test: b.jsonl}, fields: {text: input, label: output}}
models: [{name: openai/x, api_base: "http://127.0.0.1:9/v1"}]
methods: [zero_shot, {few_shot: {demos: 2}}]
"""


def sound_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a sound experiment into a folder and go there."""
    lines = [json.dumps(r) + "\n" for r in ROWS]
    (folder / "a.jsonl").write_text("".join(lines[:30]))
    (folder / "b.jsonl").write_text("".join(lines[30:]))
    (folder / "x.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(folder)
    return folder


def refused(capsys: Capture, *argv: str, codes: tuple[int, ...] = (2,)) -> str:
    """Run a verb and return what it says on stderr, which is no traceback and holds no control character."""
    signal.alarm(60)
    code = main(list(argv))
    signal.alarm(0)
    out, err = capsys.readouterr()
    assert "internal fault" not in err, err
    assert "Traceback" not in err, err
    assert code in codes, (code, err)
    assert not re.search(r"[^\n\t\x20-\x7e\xa0-\uffff]", out + err)
    if code == 2:
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert lines
        assert all(len(line) <= 1010 for line in lines)
    return err


def nested(opening: str, closing: str, depth: int = DEEP) -> str:
    return opening * depth + closing * depth
