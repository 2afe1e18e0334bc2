"""Prompts encoded in parts or sent ahead are those that the program asks, and the rows are the same."""

import random
from dataclasses import replace
from typing import Any

import dspy
import pytest
import tiny
import torch
from fakes import metric
from transformers import AutoTokenizer

from crossover.models.ahead import sending_ahead
from crossover.models.batching import Job, decode_jobs
from crossover.models.decode import Prompt
from crossover.models.encoding import PromptEncoder, sought_texts
from crossover.models.engine import innermost
from crossover.models.last_answer import recorded
from crossover.models.load import LoadedModel
from crossover.models.prompt import first_messages
from crossover.models.prompt_formats import prompt_format
from crossover.models.text import FALLBACK_TEMPLATE, safe_messages
from crossover.programs.demos import with_demos
from crossover.programs.modules.classify import Classify
from crossover.programs.modules.rag import Rag
from crossover.programs.score import Row, score_examples

START = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
TEMPLATES = {
    "its own": None,
    "none": FALLBACK_TEMPLATE,
    "trims": "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim + '<|end|>' }}{% endfor %}" + START,
    "quotes": "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | tojson + '<|end|>' }}{% endfor %}" + START,
    "looks for a tag": "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}{{ '<|end|>' }}{% endfor %}" + START,
    "counts words": "{% for m in messages %}{{ '<|' + m.role + '|>' ~ m.content.split() | length ~ m.content }}"
    "{{ '<|end|>' }}{% endfor %}" + START,
}
LABELS = ["card_lost", "refund_late", "close_account", "exchange_rate"]
SPECIAL = ["<|end|>", "<|user|>", "</think>", '"', "é", "日本", "🙂", "\t", "[[ ## x ## ]]"]
PIECES = ["card", " lost", "  ", "\n", "\n\n", "0", "_a", *SPECIAL]
PIECES = [
    "card",
    " lost",
    "  ",
    "\n",
    "\n\n",
    "<|end|>",
    "<|user|>",
    "</think>",
    '"',
    "é",
    "日本",
    "🙂",
    "\t",
    "[[ ## x ## ]]",
    "0",
    "_a",
]


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 12)))


def tokens_of_the_whole(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    whole = tokenizer.apply_chat_template(safe_messages(tokenizer, messages), add_generation_prompt=True, tokenize=True)
    return list(whole["input_ids"])


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_in_parts_have_the_tokens_of_the_whole(template: str) -> None:
    tokenizer, rng = AutoTokenizer.from_pretrained(tiny.FOLDER), random.Random(template)
    tokenizer.chat_template = TEMPLATES[template] or tokenizer.chat_template
    encoder, splits = PromptEncoder(tokenizer), 0
    for _ in range(20):
        shared = [
            {"role": r, "content": random_text(rng)} for r in ("system", "user", "assistant")[: rng.randint(0, 3)]
        ]
        contents = [random_text(rng) for _ in range(rng.randint(1, 6))]
        prompts = [[*shared, {"role": "user", "content": c}] for c in contents]
        whole = [tokens_of_the_whole(tokenizer, p) for p in prompts]
        assert [row.tolist() for row in encoder.encode_all(prompts[0], contents)] == whole
        assert [encoder.encode(p) for p in prompts * 2] == whole * 2
        splits += any(beginning is not None for beginning in encoder._beginnings.values())
    assert (splits > 0) == (template in ("its own", "trims", "looks for a tag"))


def test_the_texts_that_a_template_looks_for_are_known() -> None:
    assert "</think>" in sought_texts(TEMPLATES["looks for a tag"] or "")
    assert sought_texts("{{ m['role'] + '\n' + 'user' }}") == []


@pytest.mark.parametrize("name", ["plain", "chat", "json"])
@pytest.mark.parametrize("instruct", [False, True])
def test_the_last_message_alone_is_that_of_the_whole_prompt(name: str, instruct: bool) -> None:
    rendered, rng = prompt_format(name, instruct=instruct), random.Random(name)
    for program in (Classify(["text", "hint"], "label", ["a", "b"]), Rag(["text", "hint"], "answer")):
        for _ in range(100):
            texts = {k: random_text(rng) for k in ("text", "hint", "label", "answer")}
            example = dspy.Example(**texts, passages=[random_text(rng), random_text(rng)])
            example = example.with_inputs("text", "hint", "passages")
            shown = with_demos(program, [example] * rng.randint(0, 2))
            with dspy.context(adapter=rendered):
                messages = first_messages(shown, example)
            signature = shown.predictors()[0].signature
            inputs = {k: v for k, v in example.inputs().items() if k in signature.input_fields}
            assert messages[-1] == {"role": "user", "content": rendered.last_content(signature, inputs)}  # type: ignore[attr-defined]


class Rewords(dspy.Module):
    """A program of one step that asks another question than the example's."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("text -> label")

    def forward(self, text: str) -> dspy.Prediction:
        return self.predict(text=text.upper())


class Twice(Rewords):
    """A program that asks the example's question, and then another one."""

    def forward(self, text: str) -> dspy.Prediction:
        self.predict(text=text)
        return self.predict(text=text.upper())


def scored(
    program: dspy.Module, examples: list[dspy.Example], model: LoadedModel, *, ahead: bool
) -> tuple[dict[str, Row], int]:
    """Return the rows by id, less what depends on the clock, and the answers that were claimed."""
    lm = recorded(model.lm)
    with (
        dspy.context(lm=lm, adapter=model.prompt_format, disable_history=ahead),
        sending_ahead(program, lm, model.prompt_format) as sent,
    ):
        assert (sent is not None) == ahead
        rows = score_examples(program, sent.answered(examples) if sent else examples, metric, threads=2)
        return {r.id: replace(r, seconds=0.0, cached_tokens=0) for r in rows}, sent.claimed if sent else 0


@pytest.mark.parametrize("name", ["plain", "chat", "json"])
def test_rows_are_the_same_whether_prompts_were_sent_ahead(
    name: str, spoken: LoadedModel, intents: list[dspy.Example]
) -> None:
    model, asked = spoken.in_format(name), [*intents, intents[0].copy(id="again"), intents[1].copy(id="-", text=" ")]
    for program in (Classify(["text"], "label", LABELS), with_demos(Classify(["text"], "label", []), intents[:4])):
        expected, _ = scored(program, asked, model, ahead=False)
        assert scored(program, asked, model, ahead=True) == (expected, len(asked))


@pytest.mark.parametrize(("program", "claimed"), [(Rewords(), 0), (Twice(), 1)])
def test_a_program_that_asks_something_else_is_answered_all_the_same(
    program: dspy.Module, claimed: int, spoken: LoadedModel, intents: list[dspy.Example]
) -> None:
    expected, _ = scored(program, intents[:6], spoken, ahead=False)
    assert scored(program, intents[:6], spoken, ahead=True) == (expected, 6 * claimed)


def test_a_prompt_that_does_not_fit_fails_alone(spoken: LoadedModel, intents: list[dspy.Example]) -> None:
    asked = [*intents[:3], intents[3].copy(text="word " * 6000), intents[4].copy(text="\ud800")]
    rows, claimed = scored(Classify(["text"], "label", []), asked, spoken, ahead=True)
    assert claimed == 3
    assert {n for n, r in rows.items() if r.failure} == {"3", "4"}
    assert rows == scored(Classify(["text"], "label", []), asked, spoken, ahead=False)[0]


def test_a_prompt_that_was_given_up_is_not_computed(spoken: LoadedModel) -> None:
    engine, jobs = innermost(spoken.lm), [Job(Prompt([5, 6, 7 + n], 2), "") for n in range(3)]
    jobs[1].answer.cancel()
    with torch.inference_mode():
        decode_jobs(engine, jobs, None)
    assert [j.answer.cancelled() for j in jobs] == [False, True, False]
    assert all(j.answer.result()[0] for j in jobs[::2])
