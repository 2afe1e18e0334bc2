"""The prompt format that is chosen on val: the one that the model can follow, the same for every arm, and charged."""

import json
from pathlib import Path

import pytest
from openai_server import openai_server
from openings import write_openings
from processes import UNTRACKED
from remote_experiment import write_remote

from crossover.eval.cli.main import main
from crossover.eval.run.formats import QUESTIONS
from crossover.eval.store.recorded import read_recorded


def run(file: Path, store: Path, *flags: str) -> int:
    return main(["run", str(file), "--store", str(store), *UNTRACKED, *flags])


def undecided(file: Path, fixed: str = '"prompt_format": "plain"') -> Path:
    """Let the model's prompt format be chosen."""
    assert fixed in file.read_text()
    file.write_text(file.read_text().replace(fixed, '"prompt_format": "auto"'))
    return file


def test_the_format_that_is_parsed_most_is_taken_kept_and_charged(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = undecided(write_openings(tmp_path, "[zero_shot, few_shot: {demos: 2}]", test=8))
    assert run(file, store, "--details") == 0
    captured = capsys.readouterr()
    (line,) = [x for x in captured.err.splitlines() if "prompt format plain:" in x]
    assert line.startswith("openings: prompt format plain: ")
    assert line.count("score") == 3
    assert line.removeprefix("openings: ") in " ".join(captured.out.split())
    results = read_recorded(store).results
    assert {r.notes["prompt_format"] for r in results} == {"plain"}
    assert all(r.notes["prompt_format_choice"] in line for r in results)
    # Three formats, each without and with demonstrations, in the cost of every arm.
    assert [r.fit.calls for r in results] == [3 * 2 * QUESTIONS] * 2
    assert all(r.fit.seconds > 0 for r in results)
    # A later run of more arms goes by the choice of the first.
    (kept,) = (store / "formats").iterdir()
    choice = json.loads(kept.read_text())
    assert [t["parsed"] for t in choice["tried"]] == sorted((t["parsed"] for t in choice["tried"]), reverse=True)
    choice["name"] = "json"
    kept.write_text(json.dumps(choice))
    file.write_text(file.read_text().replace("few_shot: {demos: 2}", "few_shot: {demos: 3}"))
    assert run(file, store) == 0
    assert [r.notes["prompt_format"] for r in read_recorded(store).results] == ["plain", "json"]


def test_a_provider_is_asked_in_chat_without_trying(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def chat(model: str, messages: list[dict[str, str]]) -> str:
        return "[[ ## label ## ]]\nmoney\n\n[[ ## completed ## ]]"

    with openai_server(chat) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        file.write_text(file.read_text().replace("prompt_format: plain, ", ""))
        assert run(file, store) == 0
    assert not (store / "formats").exists()
    (result,) = read_recorded(store).results
    assert result.notes["prompt_format"] == "chat"


def test_the_old_key_is_answered_with_the_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_openings(tmp_path, "[zero_shot]")
    file.write_text(file.read_text().replace("prompt_format", "adapter"))
    assert main(["validate", str(file)]) == 2
    assert "unknown key in models `adapter`; did you mean `prompt_format`?" in capsys.readouterr().err
