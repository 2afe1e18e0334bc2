"""What the model did is its score; what failed around it has none, is asked again, and bars an arm when it is much."""

import json
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import dspy
import pytest
import tiny
from crashing import summaries, timeless
from factories import make_cell, make_result, make_row, right
from openai_server import Messages, in_chat_frame, openai_server
from openings import write_openings
from remote_experiment import first_word, write_remote

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.cli.main import main
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.report.table import render
from crossover.eval.store.result import append_rows, drop_failed_rows, read_rows
from crossover.models.last_answer import recorded
from crossover.models.load import LoadedModel, load_model
from crossover.models.prompt_formats import prompt_format
from crossover.models.spec import ModelSpec
from crossover.programs.modules.classify import Classify
from crossover.programs.score import LONGEST_REASON, Row, score_examples

ANSWERS = {
    "right": in_chat_frame({"label": "money"}),
    "in other letters": in_chat_frame({"label": "Money."}),
    "no fields": "I think that this is about money, " + "and much more, " * 50,
    "nothing": "",
    "an empty field": in_chat_frame({"label": "  "}),
    "cut off": "[[ ## lab",
    "off the labels": in_chat_frame({"label": "cash\nor money"}),
    "a label that train lacks": in_chat_frame({"label": "parcel"}),
}


class Topic(Enum):
    """The labels of `ANSWERS`, as a type."""

    MONEY = "money"
    DELIVERY = "delivery"


def scored(
    answer: Callable[[str], str],
    texts: dict[str, str],
    metric: Callable[..., float] = lambda *_: 1.0,
    program: dspy.Module | None = None,
) -> dict[str, Row]:
    """Return the row of each text, by the text, from a model that answers by a rule; texts lead to gold labels."""
    with openai_server(lambda model, messages: answer(asked(messages))) as served:
        model = load_model(ModelSpec("openai/gpt-4o-mini", prompt_format="chat", api_base=served.url))
        with dspy.context(lm=recorded(model.lm), adapter=model.prompt_format):
            examples = [dspy.Example(id=t, text=t, label=y).with_inputs("text") for t, y in texts.items()]
            program = program or Classify(["text"], "label", ["money", "delivery"])
            return {r.id: r for r in score_examples(program, examples, metric, price=model.price)}


def asked(messages: Messages) -> str:
    return messages[-1]["content"].partition("[[ ## text ## ]]\n")[2].partition("\n")[0]


def test_what_the_model_did_is_its_score() -> None:
    rows = scored(ANSWERS.__getitem__, dict.fromkeys(ANSWERS, "money") | {"a label that train lacks": "parcel"})
    answered = {"right", "in other letters", "a label that train lacks"}
    assert {name for name, r in rows.items() if not r.unparsed} == answered
    # The metric takes any answer for right, but is asked only about those that can be read.
    assert {name for name, r in rows.items() if r.score == 1.0} == answered
    assert {r.score for r in rows.values() if r.unparsed} == {0.0}
    assert {r.failure for r in rows.values()} == {""}
    assert {name: r.raw for name, r in rows.items()} == ANSWERS
    assert rows["off the labels"].output == {"label": "cash\nor money"}
    assert rows["no fields"].output == {}


def test_a_typed_label_is_held_to_its_type() -> None:
    program = dspy.Predict(dspy.Signature({"text": (str, dspy.InputField()), "label": (Topic, dspy.OutputField())}))
    rows = scored(ANSWERS.__getitem__, dict.fromkeys(("right", "off the labels"), "money"), program=program)
    assert {name: (r.unparsed, r.score, r.raw) for name, r in rows.items()} == {
        "right": (False, 1.0, ANSWERS["right"]),
        "off the labels": (True, 0.0, ANSWERS["off the labels"]),
    }


def test_an_answer_cut_off_before_its_field_is_unparsed(small: LoadedModel, intents: list[dspy.Example]) -> None:
    with dspy.context(lm=recorded(small.lm.copy(max_tokens=2)), adapter=prompt_format("chat")):
        (row,) = score_examples(Classify(["text"], "label", []), intents[:1], lambda *_: 1.0)
    assert (row.score, row.unparsed, row.failure, row.completion_tokens) == (0.0, True, "", 2)
    assert row.raw


def test_a_failure_holds_its_whole_reason_up_to_a_bound() -> None:
    def broken(gold: Any, pred: Any, *_: Any) -> float:
        raise ValueError(f"line 1\n{'because ' * int(gold['text'])}end")

    rows = scored(lambda text: in_chat_frame({"label": "money"}), {"100": "money", "1000": "money"}, broken)
    assert rows["100"].failure == f"metric: ValueError: line 1 {'because ' * 100}end"
    assert rows["1000"].failure.endswith(" because …")
    assert LONGEST_REASON - 10 < len(rows["1000"].failure) <= LONGEST_REASON + 2
    assert {(r.score, r.unparsed) for r in rows.values()} == {(None, False)}


def test_a_reason_is_the_providers_without_the_librarys_advice() -> None:
    class Refused(dspy.Module):
        def forward(self, **inputs: str) -> dspy.Prediction:
            raise dspy.LMRateLimitError("[m] busy\n\n  To fix:\n    - Wait a moment and retry\n")

    example = dspy.Example(id="1", text="a", label="b").with_inputs("text")
    (row,) = score_examples(Refused(), [example], lambda *_: 1.0, threads=1)
    assert row.failure == "lm: LMRateLimitError: [m] busy"


def test_dropping_failed_rows_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    file, rows = tmp_path / "rows.jsonl", [make_row(0, 1.0), make_row(1, None), make_row(2, 0.5), make_row(3, None)]
    append_rows(file, rows)
    drop_failed_rows(file)
    assert list(read_rows(file)) == [rows[0], rows[2]]
    before = file.stat()
    drop_failed_rows(file)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def run(file: Path, store: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    """Run an experiment on one thread and return the exit code and the JSON."""
    argv = ["run", str(file), "--store", str(store), "-j", "1", "-q", "--json", "--tracking-uri", "none", *flags]
    code = main(argv)
    return code, capsys.readouterr().out


def test_the_next_run_asks_the_failed_rows_again_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = [""] * 10
    faults[3] = faults[5] = "401"
    with openai_server(first_word, faults) as served:
        file, store = write_remote(tmp_path, served.url), tmp_path / "mlruns"
        code, disturbed = run(file, store, capsys)
        assert code == 4
        (arm, other) = json.loads(disturbed)["arms"]
        assert [(a["score"]["n"], a["score"]["failed"]) for a in (arm, other)] == [(10, 2), (12, 0)]
        (sentence,) = json.loads(disturbed)["failures"]
        assert sentence == "words, zero_shot: 2 of 12 rows failed; the same command asks them again"
        assert arm["integrity"][0].startswith("2 of 12 rows failed, more than 5%, the first by lm: LMAuthError: ")
        refused, before = [served.bodies[n] for n in (3, 5)], len(served.bodies)
        code, whole = run(file, store, capsys)
        assert (code, served.bodies[before:]) == (0, refused)
        before = len(served.bodies)
        assert run(file, store, capsys) == (0, whole)
        assert len(served.bodies) == before
        assert run(file, tmp_path / "other", capsys)[0] == 0
        undisturbed = run(file, tmp_path / "other", capsys)[1]
    assert timeless(whole) == timeless(undisturbed)
    assert summaries(store) == summaries(tmp_path / "other")
    assert not list(store.glob("cells/*/serving.jsonl"))


def test_rows_that_fail_for_good_are_asked_once_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(first_word, refused="of 203") as served:
        file, store = write_remote(tmp_path, served.url, methods="[zero_shot]"), tmp_path / "mlruns"
        codes = [run(file, store, capsys, *flags)[0] for flags in ((), ("--allow-partial",), ())]
        assert codes == [4, 0, 4]
        assert sum("of 203" in json.dumps(body) for body in served.bodies) == 3  # the latency asks others
    (rows,) = store.glob("cells/*/rows.jsonl")
    assert [r.id for r in read_rows(rows) if r.failure] == ["test203"]
    assert len(list(read_rows(rows))) == 12


METRIC = """\
from pathlib import Path

def metric(gold, pred):
    if gold.label != pred.label and not Path(__file__).with_name("mended").exists():
        raise RuntimeError("the metric is broken")
    return float(gold.label == pred.label)
"""


@pytest.mark.slow
def test_a_trained_cell_is_not_trained_again_for_its_failed_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_openings(tmp_path, "[sft: {epochs: 1, rank: 4}]", test=20)
    (tmp_path / "mine.py").write_text(METRIC)
    text = file.read_text().replace("    fields:", "    metric: ./mine.py:metric\n    fields:")
    free, bound = tiny.model(max_tokens=8), tiny.model(max_tokens=8, decode="labels")
    assert free in text
    file.write_text(text.replace(free, bound))
    code, broken = run(file, tmp_path / "mlruns", capsys)
    (arm,) = json.loads(broken)["arms"]
    assert (code, arm["score"]["mean"]) == (4, 1.0)
    assert arm["score"]["failed"] > 1
    why = "the first by metric: RuntimeError: the metric is broken"
    assert arm["integrity"] == [f"{arm['score']['failed']} of 20 rows failed, more than 5%, {why}"]
    (folder,) = (tmp_path / "mlruns" / "cells").iterdir()
    # A copy has the time of its original, so it tells when the weights were trained.
    weights = folder / "fit" / "best" / "adapter_model.safetensors"
    trained = weights.stat().st_mtime_ns
    (tmp_path / "mended").touch()
    code, mended = run(file, tmp_path / "mlruns", capsys)
    (arm,) = json.loads(mended)["arms"]
    assert (code, arm["score"]["n"], arm["score"]["failed"], arm["integrity"]) == (0, 20, 0, [])
    assert weights.stat().st_mtime_ns == trained
    assert not (folder / "checkpoints").exists()
    code, undisturbed = run(file, tmp_path / "other", capsys)
    assert json.loads(undisturbed)["arms"][0]["score"] == arm["score"]


def compared(unparsed: int, failed: int) -> Comparison:
    """Return a comparison of an arm with so many unparsed and failed rows of 100, and one without."""
    rows = [replace(make_row(i, 0.0), unparsed=True) for i in range(unparsed)]
    rows += [make_row(i, None if i < unparsed + failed else 1.0) for i in range(unparsed, 100)]
    marked = make_result(make_cell("few_shot"), [])
    marked.rows = rows
    results = [marked, make_result(make_cell("zero_shot"), right(10, 100))]
    return compare(results, needs=Needs(), prices=Prices(), experiment="x")


@pytest.mark.parametrize(
    ("unparsed", "failed", "barred", "warned"),
    [(5, 5, False, False), (6, 0, False, True), (30, 5, False, True), (0, 6, True, False)],
)
def test_failed_rows_bar_an_arm_and_unparsed_answers_do_not(
    unparsed: int, failed: int, barred: bool, warned: bool
) -> None:
    comparison = compared(unparsed, failed)
    arm = comparison.arms[0]
    assert (arm.unparsed, arm.failed, arm.score.n) == (unparsed, failed, 100 - failed)
    assert bool(arm.integrity) is barred
    assert (comparison.verdicts[0].choose == "few_shot") is not barred
    doubts = [c for c in comparison.cautions["intents"] if "could not be parsed" in c]
    assert [c.partition(" ")[0] for c in doubts] == [f"{unparsed}%"] * warned
    assert ("unparsed" in render(comparison)) is bool(unparsed)
