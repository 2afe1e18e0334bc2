"""What README tells people to type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from crossover.programs.metrics import metric_names

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_commands_work_in_their_order_in_an_empty_folder(tmp_path: Path) -> None:
    block = README.read_text(encoding="utf-8").partition("```sh\n")[2].partition("```")[0]
    assert block.count("crossover ") >= 12
    # The small model stands in for smollm2, which would be fetched; a flag's value holds no space in the environment.
    model = f"models=[{tiny.model(max_tokens=8)}]".replace(" ", "")
    verbs = ("VALIDATE", "PLAN", "RUN", "REPORT")
    settings = {f"CROSSOVER_{verb}_SET": model for verb in verbs} | {"CROSSOVER_LATENCY_REQUESTS": "3"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env=os.environ | settings | {"PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {"report.html", "report.md", "winner", "crossover.schema.json"} <= {
        f.name for f in (tmp_path / "tickets").iterdir()
    }


def test_every_metric_is_named() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in metric_names() if f"`{name}`" not in text] == []
