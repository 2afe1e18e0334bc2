"""Prompting a model behind an API against fine-tuning a small one that runs here: one experiment, one verdict."""

import json
from pathlib import Path

import pytest
import tiny
from openai_server import openai_server
from processes import UNTRACKED
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main

METHODS = "[zero_shot, {few_shot: {demos: 2}}, {sft: {epochs: 1, rank: 4}}]"


def test_one_verdict_ranges_over_an_api_and_a_local_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url, methods=METHODS, test=60)
        api = json.dumps({"name": "openai/gpt-4o-mini", "prompt_format": "plain", "api_base": served.url})
        flags = ["--set", f"models=[{api}, {tiny.model(max_tokens=8)}]", "--store", str(tmp_path / "mlruns"), "-q"]
        assert main(["run", str(file), *flags, *UNTRACKED, "--json"]) == 0
    captured = capsys.readouterr()
    assert "--set models: openai/gpt-4o-mini runs elsewhere, and its weights cannot be trained here; " in captured.err
    assert "left out: sft epochs=1 rank=4; all else is compared" in captured.err
    data = json.loads(captured.out)
    assert [(a["model"], a["method"]) for a in data["arms"]] == [
        ("openai/gpt-4o-mini", "zero_shot"),
        ("openai/gpt-4o-mini", "few_shot"),
        *((tiny.NAME, method) for method in ("zero_shot", "few_shot", "sft")),
    ]
    (verdict,) = data["verdict"]
    assert verdict["compared"] == [a["id"] for a in data["arms"]]
    # The best arm, of one model, is not told apart from the one next to it, of the other.
    assert (verdict["choose"], verdict["confidence"]) == (None, "abstain")
    assert verdict["because"].startswith(
        "The best arm, zero_shot, openai/gpt-4o-mini, is not significantly better than sft"
    )
    # Every pair of arms, across the models too.
    assert len(data["contrasts"]) == 10
    prices = [a["cost_usd"]["per_1k_requests"] for a in data["arms"]]
    assert all(p > 0 for p in prices)
    # The API's tokens have a price, and the seconds of this machine another.
    assert data["arms"][-1]["cost_usd"]["fit"] > 0


def test_a_file_whose_every_arm_would_be_left_out_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_remote(tmp_path, "http://127.0.0.1:9/v1", methods="[sft, {chain: [gepa, sft]}]")
    assert main(["run", str(file), "--store", str(tmp_path / "mlruns")]) == 2
    assert "error: remote.yaml:8: openai/gpt-4o-mini runs elsewhere" in capsys.readouterr().err
    assert not (tmp_path / "mlruns").exists()
