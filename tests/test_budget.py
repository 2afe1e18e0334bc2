"""What searches may spend and what they did: the same for every arm unless the file says otherwise, and all charged."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai_server import Messages, asked_fields, in_chat_frame, openai_server
from processes import UNTRACKED
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main
from crossover.models.price import api_price

METHODS = """
  - copro: {breadth: 3, depth: 2}
  - bootstrap_search: {candidates: 4, bootstrapped: 2, labelled: 2}
  - bootstrap_search: {candidates: 4, bootstrapped: 2, labelled: 2, metric_calls: 9}
"""


def answer(model: str, messages: Messages) -> str:
    """Answer as the student, or as a teacher that is right of a third."""
    if model != "gpt-4o":
        return first_word(model, messages)
    values = {"label": "other", "proposed_instruction": "Answer with the first word of the text."}
    return in_chat_frame({f: values.get(f, "none") for f in asked_fields(messages)})


def test_arms_share_a_budget_and_pay_for_what_they_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(answer) as served:
        teacher = f'teacher: {{name: openai/gpt-4o, api_base: "{served.url}", max_tokens: 300}}'
        file = write_remote(tmp_path, served.url, methods=METHODS, more=f"{teacher}\nbudget: {{metric_calls: 20}}")
        store = tmp_path / "mlruns"
        assert main(["run", str(file), "--store", str(store), "-q", "-j", "2", "--json", *UNTRACKED]) == 0
    arms = json.loads(capsys.readouterr().out)["arms"]
    results = [json.loads((store / "cells" / a["id"] / "result.json").read_text()) for a in arms]
    spent = [(r["cell"]["method"]["options"].get("metric_calls", 20), r["fit"]["metric_calls"]) for r in results]
    assert spent[1:] == [(20, 20), (9, 9)]
    assert 6 <= spent[0][1] <= 20
    for (most, _), arm in zip(spent[1:], arms[1:], strict=True):
        assert f"the budget ended the search: {most} metric calls" in arm["warnings"]
    # Streams are asked for latency alone; all else is in an arm's ledger, the teacher's calls as such.
    rows = [json.loads(line) for f in store.glob("cells/*/rows.jsonl") for line in f.read_text().splitlines()]
    assert paid(served.usages) == pytest.approx(sum(r["fit"]["usd"] for r in results) + sum(r["usd"] for r in rows))
    teachers = [r["notes"]["teacher"] for r in results]
    by_teacher = [u for u in served.usages if u["model"] == "gpt-4o"]
    assert sum(t["calls"] for t in teachers) == len(by_teacher)
    assert paid(by_teacher) == pytest.approx(sum(t["usd"] for t in teachers))
    for arm, result in zip(arms, results, strict=True):
        assert arm["cost_usd"]["fit"] == pytest.approx(result["fit"]["usd"], abs=1e-6)
        assert result["fit"]["usd"] >= result["notes"]["teacher"]["usd"]
    assert min(t["usd"] for t in teachers[:2]) > 0


def paid(usages: list[dict[str, Any]]) -> float:
    return sum(api_price({f"openai/{u['model']}": u}) or 0 for u in usages)
