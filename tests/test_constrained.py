"""Constrained decoding: every format holds answers to their labels and types, in the layout that it reads back."""

from typing import Any, Literal

import dspy
import numpy as np
import pytest
import tiny
from pydantic import BaseModel
from transformers import AutoTokenizer

from crossover.models.constrained import Constraint, Grammars
from crossover.models.device import load_weights
from crossover.models.load import load_model, local_lm
from crossover.models.local import LocalEngine
from crossover.models.plain import PlainAdapter
from crossover.models.prompt_formats import prompt_format
from crossover.models.spec import ModelSpec
from crossover.programs.modules.classify import build

TOKENIZER = AutoTokenizer.from_pretrained(tiny.FOLDER)
PIECES = [TOKENIZER.decode([token]) for token in range(len(TOKENIZER))]
FORMATS = ["plain", "chat", "json"]


class Item(BaseModel):
    """An object inside an answer."""

    name: str
    price: float


VALUES: dict[str, tuple[Any, Any]] = {
    "label": (Literal["card", "card_arrival"], "card"),
    "note": (str, "some words, 12 of them"),
    "count": (int, 120),
    "done": (bool, False),
    "tags": (list[str], ["a b", "c"]),
    "items": (list[Item], [Item(name="x", price=1.5)]),
    "perhaps": (int | None, 3),
    "last": (str, "the end"),
}


def signature(*names: str) -> type[dspy.Signature]:
    fields: dict[str, Any] = {"text": (str, dspy.InputField())}
    made: type[dspy.Signature] = dspy.Signature(fields | {n: (VALUES[n][0], dspy.OutputField()) for n in names}, "Go.")
    return made


def spelled(grammars: Grammars, schema: dict[str, Any], wanted: str) -> tuple[str, bool]:
    """Return as much of a text as the grammar allows, by its longest tokens, and whether the answer may end there."""
    grammar = grammars.compiled(schema)
    constraint, text = Constraint(grammar), "".join(PIECES[t] for t in grammar.opening).lstrip()
    while not constraint.ended:
        bits = np.frombuffer(constraint.mask(), np.uint8)
        allowed = set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())
        fitting = [t for t in allowed if PIECES[t] and wanted.startswith((text + PIECES[t]).lstrip())]
        if text == wanted or not fitting:
            return text, text == wanted and TOKENIZER.eos_token_id in allowed
        token = max(fitting, key=lambda t: len(PIECES[t]))
        more = constraint.advance(token)
        text = (text + PIECES[token]).lstrip() + TOKENIZER.decode(more, skip_special_tokens=True)
    return text, True


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fields", [("label",), ("done",), ("count",), ("items",), ("tags", "note"), tuple(VALUES)])
def test_a_schema_allows_the_answer_that_a_format_writes_and_reads_back(name: str, fields: tuple[str, ...]) -> None:
    form, asked = prompt_format(name, decode="schema"), signature(*fields)
    values = {n: VALUES[n][1] for n in fields}
    written = form.format_assistant_message_content(asked, values).strip()
    grammars = Grammars(TOKENIZER, len(TOKENIZER), [TOKENIZER.eos_token_id], at_line=False)
    assert spelled(grammars, form.answer_schema(asked), written) == (written, True)
    assert form.parse(asked, written) == values


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("decode", ["labels", "auto"])
def test_labels_bind_a_classifier_in_every_format(name: str, decode: str) -> None:
    model = load_model(ModelSpec(tiny.NAME, prompt_format=name, decode=decode, max_tokens=12))
    labels = ["card_arrival", "card", "exchange rate", "Refund (late)"]
    program = build(["text"], output="label", labels=labels, instructions="")
    with dspy.context(lm=model.lm, adapter=model.prompt_format):
        answers = {program(text=f"when will my card number {n} come").label for n in range(4)}
    assert answers <= set(labels)


@pytest.mark.parametrize("name", FORMATS)
def test_a_schema_binds_several_typed_fields(name: str) -> None:
    model = load_model(ModelSpec(tiny.NAME, prompt_format=name, decode="schema", max_tokens=200))
    program = dspy.Predict(signature("label", "done"))
    with dspy.context(lm=model.lm, adapter=model.prompt_format):
        answer = program(text="when will my card come")
    assert answer.label in ("card", "card_arrival")
    assert isinstance(answer.done, bool)


def test_a_base_model_ends_a_constrained_answer_at_its_last_line() -> None:
    weights, tokenizer = load_weights(tiny.FOLDER, trust_remote_code=False)
    tokenizer.chat_template = None
    lm = local_lm("local/base", LocalEngine(weights, tokenizer), 200, 0.0)
    with dspy.context(lm=lm, adapter=prompt_format("chat", decode="schema")):
        assert dspy.Predict(signature("label", "done"))(text="when will it come").label in ("card", "card_arrival")
    with dspy.context(lm=lm, adapter=prompt_format("plain", decode="labels")):
        assert dspy.Predict(signature("label"))(text="when will it come").label in ("card", "card_arrival")


@pytest.mark.parametrize(("opened", "text"), [(False, " card"), (True, "card")])
def test_an_answer_is_spelled_as_after_the_text_that_stands_before_it(opened: bool, text: str) -> None:
    schema = prompt_format("plain", decode="labels").answer_schema(signature("label"))
    grammars = Grammars(TOKENIZER, len(TOKENIZER), [TOKENIZER.eos_token_id], at_line=False, opened=opened)
    assert "".join(PIECES[t] for t in grammars.compiled(schema).opening) == text


def test_free_programs_and_free_decoding_make_no_grammar() -> None:
    assert prompt_format("plain", decode="schema").answer_schema(signature("note")) is None
    assert prompt_format("chat", decode="labels").answer_schema(signature("note", "label")) is None
    assert prompt_format("json", decode="free").answer_schema(signature("label")) is None


def test_the_plain_format_tells_an_instruct_model_what_each_field_may_hold() -> None:
    one = PlainAdapter(instruct=True).format(signature("label"), [], {"text": "x"})
    assert one[0]["content"] == "Go.\n\nlabel: one of: card, card_arrival\n\nAnswer with the label alone."
    several = PlainAdapter(instruct=True).format(signature("label", "note", "count", "done", "tags"), [], {"text": "x"})
    assert several[0]["content"].splitlines()[2:] == [
        "Answer with one line for each field, as `name: value`:",
        "label: <one of: card, card_arrival>",
        "note: <text>",
        "count: <a whole number>",
        "done: <true or false>",
        "tags: <a list of texts, as JSON>",
    ]
