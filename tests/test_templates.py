"""Local models whose template, tokens or answers are not what a reader expects of an instruct model."""

import json
import shutil
from pathlib import Path

import dspy
import pytest
import tiny
from factories import task_with_corpus
from transformers import AutoTokenizer

from crossover.eval.run.measure import measure_accuracy
from crossover.eval.run.progress import Progress
from crossover.models.load import LoadedModel, load_model
from crossover.models.prompt_formats import prompt_format
from crossover.models.spec import ModelSpec
from crossover.models.text import SYSTEM_INTO_USER, answer_opening, mend_tokenizer, turn_end
from crossover.models.think import without_thoughts
from crossover.models.usage import Usage
from crossover.programs.modules.classify import Classify
from crossover.programs.task import Fitted

TURNS = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
START = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS = "{% for m in messages if m['role'] != 'system' %}{{ '<|user|>' + m['content'] + '<|end|>' }}{% endfor %}"
THOUGHTS = "('<think>\\n\\n</think>\\n\\n' if m['role'] == 'assistant' and loop.last else '')"
THINKS = TURNS.replace("+ m['content']", f"+ {THOUGHTS} + m['content']")
CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]


@pytest.mark.parametrize("template", [REFUSES + TURNS + START, DROPS + START])
def test_instructions_move_into_the_users_turn_of_a_template_without_a_system_turn(template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER)
    tokenizer.chat_template = template
    (remark,) = mend_tokenizer(tokenizer)
    assert remark.startswith("the chat template takes no system turn")
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Be brief.\n\nWhere?<|end|><|assistant|>"
    alone = tokenizer.apply_chat_template(CONVERSATION[1:], tokenize=False)
    assert alone == "<|user|>Where?<|end|>"
    assert mend_tokenizer(tokenizer) == []
    assert tokenizer.chat_template.count(SYSTEM_INTO_USER) == 1


@pytest.mark.parametrize(
    ("template", "opening"), [(TURNS + START, ""), (THINKS + START, "<think>\n\n</think>\n\n"), (REFUSES, "")]
)
def test_what_a_template_writes_before_an_answer_is_read_off_it(template: str, opening: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER)
    tokenizer.chat_template = template
    assert answer_opening(tokenizer) == opening


def test_an_answer_that_is_held_to_labels_follows_what_its_template_writes_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.FOLDER, folder)
    (folder / "chat_template.jinja").write_text(THINKS + START)
    model = load_model(ModelSpec(f"local:{folder}", prompt_format="plain"))
    lengths = []
    for decode in ("free", "labels"):
        program = Classify(["text"], "label", ["advice", "refund"])
        with dspy.context(lm=model.lm, adapter=prompt_format("plain", decode=decode)), dspy.track_usage() as usage:
            program(text="Where is it?")
        lengths.append(next(iter(usage.get_total_tokens().values()))["prompt_tokens"])
    assert lengths[1] - lengths[0] == len(
        model.lm.engine.tokenizer.encode("<think>\n\n</think>\n\n", add_special_tokens=False)
    )


def test_a_template_with_a_system_turn_stays_as_it_is() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER)
    before = tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token
    assert mend_tokenizer(tokenizer) == []
    assert (tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token) == before


def test_the_token_that_ends_a_turn_is_taken_from_the_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER)
    end, name = turn_end(tokenizer), tokenizer.eos_token
    assert end == tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.pad_token = None
    (remark,) = mend_tokenizer(tokenizer)
    assert name in remark
    assert (tokenizer.eos_token, tokenizer.pad_token) == (name, name)


def test_weights_that_were_trained_are_told_of_as_their_base_is(small: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.FOLDER, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"], settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    base, task = load_model(ModelSpec(f"local:{folder}", prompt_format="plain")), task_with_corpus()
    trained = Fitted(task.program(), small.lm, Usage())
    measure_accuracy(trained, task, task.test[:1], base, file=tmp_path / "rows", threads=1, progress=Progress())
    (warning,) = trained.warnings
    assert warning.startswith("the tokenizer names no token that ends a turn")


def test_an_answer_ends_with_the_templates_token_whatever_the_generation_config_says(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.FOLDER, folder)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 0}))
    engine = load_model(ModelSpec(f"local:{folder}")).lm.engine
    assert {0, engine.tokenizer.eos_token_id} <= engine.stop


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\n\n</think>\n\nadvice", "advice"),
        ("<think>a <b> c</think>x<think>y</think>", "x<think>y</think>"),
        ("advice", "advice"),
        ("<think>cut off", "<think>cut off"),
        ("", ""),
    ],
)
def test_reasoning_before_an_answer_is_no_part_of_it(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer
