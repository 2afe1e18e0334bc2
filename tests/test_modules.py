"""Programs that retrieve: multihop searches with words of its own, dialogue shows its history."""

from pathlib import Path
from typing import Any

import dspy
from dspy.utils import DummyLM

from crossover.programs.data import load_and_check
from crossover.programs.demos import with_demos
from crossover.programs.load import load_program
from crossover.programs.spec import TaskSpec


def build(name: str, *inputs: str, output: str) -> dspy.Module:
    return load_program(name, inputs=inputs, output=output, labels=(), instructions="", base=Path())()


def searching(found: dict[str, str], asked: list[str]) -> Any:
    """Return what `dspy.settings.rm` is: passages by the words of the query."""

    def search(query: str, k: int | None = None) -> list[dspy.Prediction]:
        asked.append(query)
        return [dspy.Prediction(long_text=text) for word, text in found.items() if word in query]

    return search


def test_multihop_reads_what_its_own_query_finds() -> None:
    program, asked = build("multihop", "question", output="answer"), list[str]()
    lm = DummyLM([{"query": "director Ada"}, {"answer": "Turku"}])
    rm = searching({"Ada": "Ada was born in Turku.", "film": "Ada directed the film."}, asked)
    with dspy.context(lm=lm, rm=rm, adapter=dspy.ChatAdapter()):
        answer = program(passages=["Ada directed the film."], question="Where was the director of the film born?")
    assert (answer.answer, answer.queries, asked) == ("Turku", ["director Ada"], ["director Ada"])
    read = lm.history[-1]["messages"][-1]["content"]
    assert "Ada was born in Turku." in read
    assert read.count("Ada directed the film.") == 1


def test_multihop_without_a_search_answers_from_what_it_is_given() -> None:
    lm = DummyLM([{"answer": "Turku"}])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        answer = build("multihop", "question", output="answer")(passages=["Ada was born in Turku."], question="Where?")
    assert (answer.answer, answer.queries, len(lm.history)) == ("Turku", [], 1)


def test_demonstrations_reach_the_answer_and_not_the_query() -> None:
    program = build("multihop", "question", output="answer")
    demo = dspy.Example(passages=["a"], question="q", answer=["x", "y"]).with_inputs("passages", "question")
    shown = {name: p.demos for name, p in with_demos(program, [demo]).named_predictors()}
    assert shown == {"answer": [{"passages": ["a"], "question": "q", "answer": "x"}], "write_query": []}


def test_dialogue_shows_the_turns_as_they_are() -> None:
    lm = DummyLM([{"reply": "On Monday."}])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        program = build("dialogue", "history", "turn", output="reply")
        answer = program(passages=["Opens Monday."], history="user: hello\nagent: hi", turn="When do you open?")
    assert answer.reply == "On Monday."
    assert "user: hello\nagent: hi" in lm.history[-1]["messages"][-1]["content"]


def test_a_conversation_may_start_without_history(tmp_path: Path) -> None:
    row = '{{"id": "{0}", "history": "", "turn": "when do you open, shop {0}?", "reply": "on Monday"}}\n'
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(row.format(f"{split}{n}") for n in range(60)))
    (tmp_path / "corpus.jsonl").write_text('{"id": "p", "text": "Opens Monday."}\n')
    fields = {"id": "id", "history": "input", "turn": "input", "reply": "output"}
    data = {split: f"{split}.jsonl" for split in ("train", "val", "test")}
    task, problems = load_and_check(TaskSpec("shop", "dialogue", data, fields, corpus="corpus.jsonl"), base=tmp_path)
    assert problems == []
    assert task is not None
    assert task.test[0]["history"] == ""
    _, problems = load_and_check(TaskSpec("shop", "multihop", data, fields), base=tmp_path)
    assert any("multihop has nothing to retrieve from" in str(p) for p in problems)
