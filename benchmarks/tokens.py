"""Compare the tokens of prompts that are encoded in parts with those of the whole: `python benchmarks/tokens.py`.

Every format renders random questions behind random demonstrations, with white space, control tokens and what templates
look for in them. Any difference ends with exit status 1.
"""

import argparse
import random
import time
from collections.abc import Iterator

import dspy

from crossover.models.encoding import PromptEncoder
from crossover.models.prompt import first_messages
from crossover.models.prompt_formats import prompt_format
from crossover.models.scripted import load_tokenizer
from crossover.models.source import weights_source
from crossover.models.spec import FORMATS
from crossover.models.text import mend_tokenizer, safe_messages
from crossover.programs.demos import with_demos
from crossover.programs.modules.classify import Classify

QUESTIONS = 20
"""Questions behind the same demonstrations."""
WORDS = [
    "the",
    "card",
    "is",
    "lost",
    "é",
    "日本",
    "🙂",
    "0",
    "17",
    "_a",
    "</think>",
    "<tool_response>",
    "/no_think",
    '"',
]
BREAKS = [" ", " ", " ", "  ", "\n", "\n\n", "\t", "\u00a0", "", "."]


def random_text(rng: random.Random, controls: list[str]) -> str:
    """Return up to thirty words and breaks, control tokens among them."""
    return "".join(rng.choice([*WORDS, *controls]) + rng.choice(BREAKS) for _ in range(rng.randint(0, 30)))


def prompts(rng: random.Random, controls: list[str]) -> Iterator[list[list[dict[str, str]]]]:
    """Yield the messages of questions that share their demonstrations."""
    while True:
        examples = [
            dspy.Example(text=random_text(rng, controls), label=random_text(rng, controls)).with_inputs("text")
            for _ in range(QUESTIONS)
        ]
        program = with_demos(Classify(["text"], "label", []), examples[: rng.choice([0, 1, 4, 16])])
        with dspy.context(adapter=prompt_format(rng.choice(FORMATS), instruct=rng.random() < 0.5)):
            yield [first_messages(program, e) for e in examples]


def main() -> int:
    """Encode the prompts both ways and print how many differ."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="smollm2")
    p.add_argument("--prompts", type=int, default=10_000)
    a = p.parse_args()
    tokenizer, _ = load_tokenizer(weights_source(a.model), trust_remote_code=False)
    mend_tokenizer(tokenizer)
    encoder, rng, compared, different = PromptEncoder(tokenizer), random.Random(0), 0, 0
    seconds = {"whole": 0.0, "in parts": 0.0}
    for group in prompts(rng, tokenizer.all_special_tokens):
        begun = time.process_time()
        parts = encoder.encode_all(group[0], [m[-1]["content"] for m in group])
        seconds["in parts"] += time.process_time() - begun
        begun = time.process_time()
        safe = [safe_messages(tokenizer, messages) for messages in group]
        rows = [tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=True) for m in safe]
        seconds["whole"] += time.process_time() - begun
        different += sum(list(row["input_ids"]) != part.tolist() for row, part in zip(rows, parts, strict=True))
        compared += len(group)
        if compared >= a.prompts:
            break
    print(f"{a.model}: {compared:,} prompts, {different} with other tokens than the whole")
    print(", ".join(f"{name} {1000 * s / compared:.2f} ms of a processor a prompt" for name, s in seconds.items()))
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
