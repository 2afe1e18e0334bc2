"""An outage is not a result: it ends an arm at once with the provider's reason, and the next run asks again."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from openai_server import Messages, openai_server
from processes import UNTRACKED
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main

REFUSALS = {
    "401": "LMAuthError",
    "404": "LMUnsupportedModelError",
    "quota": "LMBillingError",
}


def run(file: Path, *flags: str) -> int:
    """Run the experiment on one thread."""
    return main(["run", str(file), "--store", str(file.parent / "mlruns"), "-q", "-j", "1", *UNTRACKED, *flags])


@pytest.mark.parametrize("fault", list(REFUSALS))
def test_the_same_refusal_of_the_first_rows_ends_the_arm(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word, [fault] * 3) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        outputs = [str(tmp_path / f"out{suffix}") for suffix in (".html", ".md", ".xml", ".json")]
        assert run(file, "-o", outputs[0], *(x for o in outputs[1:] for x in ("-o", o))) == 4
        shown = " ".join(capsys.readouterr().out.split())
        # No row after the third, and no latency.
        assert len(served.bodies) == 3
        reason = f"12 of 12 rows failed, more than 5%, the first by lm: {REFUSALS[fault]}: "
        assert reason in shown
        assert "the same command asks them again" in shown
        for output in outputs:
            text = Path(output).read_text()
            assert reason in text, output
            assert "because of this" in text, output
        ElementTree.parse(outputs[2])
        assert run(file, "--json") == 0
        assert json.loads(capsys.readouterr().out)["arms"][0]["score"]["n"] == 12


def test_an_optimizer_names_the_providers_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(first_word, ["404"] * 99) as served:
        file = write_remote(tmp_path, served.url, methods="[bootstrap, zero_shot]")
        assert run(file) == 4
        shown = " ".join(capsys.readouterr().out.split())
    assert "words, bootstrap, seed 0 could not be fitted: all calls failed: " in shown
    assert len(served.bodies) < 10


def test_a_failed_row_counts_in_no_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def honest(model: str, messages: Messages) -> str:
        text = messages[-1]["content"].partition("text: ")[2].splitlines()[0]
        return text.split()[0] if int(text.rpartition(" ")[2]) % 3 else "other"

    with openai_server(honest, refused="of 203") as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        assert run(file, "--json") == 4
        (arm,) = json.loads(capsys.readouterr().out)["arms"]
    assert (arm["score"]["mean"], arm["score"]["failed"], arm["secondary"]["macro_f1"]) == (1.0, 1, 1.0)
