"""Serving in bfloat16 against float32 on this processor, by size of the model: where `models.device.LARGE` comes from.

`python benchmarks/precision.py` prints, for random weights of growing size, how many times as fast bfloat16 reads eight
prompts of 300 tokens, answers them in one batch, and answers one alone, by the engine's own decoding.
"""

import random
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from crossover.models.decode import Prompt, Row, can_share, decode

SHAPES = ((8192, 256, 4, 8), (8192, 512, 4, 8), (32_000, 512, 8, 8), (32_000, 768, 12, 12))
"""Vocabulary, width, layers, heads; the first is that of the tests' model."""
ROWS, TOKENS, NEW = 8, 300, 16


def model_of(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Any:
    """Return random weights."""
    vocabulary, width, layers, heads = shape
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    can_share(model)
    return model


def seconds(model: Any, prompts: Sequence[Sequence[int]], new: int) -> float:
    """Return the time of answering the prompts in one batch."""
    start = time.perf_counter()
    with torch.inference_mode():
        list(decode(model, None, [Row(n, Prompt(p, new)) for n, p in enumerate(prompts)], frozenset()))
    return time.perf_counter() - start


def main() -> int:
    """Measure and print the table."""
    rng = random.Random(0)
    prompts = [[rng.randrange(8, 8192) for _ in range(TOKENS)] for _ in range(ROWS)]
    works = ((prompts, 1), (prompts, NEW), (prompts[:1], NEW))
    print("bfloat16, times as fast as float32")
    print("parameters   reading  a batch  one alone")
    for shape in SHAPES:
        models = [model_of(shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
        for model in models:
            seconds(model, prompts, 2)
        ratios = []
        for asked, new in works:
            # The best of several, taken in turns: whatever else the machine does only ever adds time.
            turns = [[seconds(model, asked, new) for model in models] for _ in range(4)]
            exact, half = (min(t[k] for t in turns) for k in (0, 1))
            ratios.append(exact / half)
        print(f"{models[0].num_parameters() / 1e6:8.1f} M  " + "  ".join(f"{r:7.2f}" for r in ratios), flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
