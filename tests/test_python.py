"""The lines of docs/python.md do what they say."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from openings import write_openings

ROOT = Path(__file__).parent.parent


def test_the_lines_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_openings(tmp_path, "[zero_shot]")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(code.replace('"smollm2"', tiny.model(max_tokens=8)), names)
    assert names["choice"] == "retrieved_demos demos=3"
    assert list(names["table"]["method"]) == ["zero_shot", "retrieved_demos"]
    assert "<pre>" in names["result"]._repr_html_()
    assert names["answer"].label == "billing"
    assert (tmp_path / "report.html").exists()
