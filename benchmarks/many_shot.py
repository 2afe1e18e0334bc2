"""Many-shot serving: this engine against what a user would wire to DSPy today.

`python benchmarks/many_shot.py [--model NAME] [--questions N] [--long TOKENS]` prints the device, questions per second,
the ratios and the peak memory, and fails where a size misses a bar of its device; beyond the model's context one of its
shape with random weights serves:
(a) transformers' `generate`, one request at a time, behind DSPy; (b) transformers' continuous batching on the same
prompts, without DSPy; (c) this engine behind DSPy, prompts sent ahead; and the floor: each distinct token once through
a plain forward pass, then decoding in one full batch, without DSPy.
"""

import argparse
import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import dspy
import torch
from dspy import lm15
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from crossover.models.ahead import sending_ahead
from crossover.models.device import accelerator
from crossover.models.load import local_lm
from crossover.models.local import LocalEngine
from crossover.models.plain import PlainAdapter
from crossover.models.prompt import first_messages, messages_of
from crossover.models.source import weights_source
from crossover.optimizers.many_shot import ManyShot
from crossover.programs.load import builtin_task
from crossover.programs.score import score_examples
from crossover.programs.task import Budget, Task

MAX_TOKENS = 8


class Bars(NamedTuple):
    """What every size has to reach on a device."""

    over_single: float
    """Least rate of the engine, in rates of one request at a time."""
    over_batched: float
    """Least rate of the engine, in rates of continuous batching."""
    over_floor: float
    """Most time of the engine, in times of the floor."""


PROCESSOR, GPU = Bars(10, 1.0, 1.3), Bars(20, 1.0, 2.0)


class OneAtATime:
    """The engine a user writes in ten lines: the chat template, then `generate`."""

    def __init__(self, engine: LocalEngine, model: Any) -> None:
        """Take a model, and the tokenizer of a loaded engine."""
        self.model, self.tokenizer, self.context = model, engine.tokenizer, engine.context
        self.encode = engine.encode

    def __deepcopy__(self, memo: dict[int, Any]) -> "OneAtATime":
        """Return itself, as every engine must."""
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request."""
        ids = torch.tensor([self.encode(messages_of(request))], device=self.model.device)
        with torch.inference_mode():
            out = self.model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False)[0, ids.shape[1] :]
        text = self.tokenizer.decode(out, skip_special_tokens=True).strip() or " "
        usage = lm15.Usage(input_tokens=ids.shape[1], output_tokens=len(out))
        return lm15.Response(
            id=None, model=request.model, message=lm15.Message.assistant(text), finish_reason="stop", usage=usage
        )


@dataclass
class Work:
    """One size of the benchmark."""

    task: Task
    program: dspy.Module
    questions: list[dspy.Example]
    prompts: list[list[int]]
    """Token ids of every question's whole prompt."""
    shared: int
    """Leading tokens that all prompts have."""


def prepare(engine: LocalEngine, demos: int, questions: int) -> Work:
    """Fit many_shot with so many demonstrations, as many as fit at most, and render the prompts."""
    task = builtin_task("stdlib_module")
    lm = local_lm("local/model", engine, MAX_TOKENS, 0.0)
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        budget: Any = Budget(workdir=Path(), threads=1)
        fitted = ManyShot(demos=demos).fit(
            task.program(), train=task.train, val=(), metric=task.metric, lm=lm, seed=0, budget=budget
        )
        chosen = list(task.test[:questions])
        prompts = [engine.encode(first_messages(fitted.program, e)) for e in chosen]
    shared = next(n for n in range(len(prompts[0])) if len({tuple(p[: n + 1]) for p in prompts}) > 1)
    return Work(task, fitted.program, chosen, prompts, shared)


def random_engine(source: Path | str, context: int) -> LocalEngine:
    """Return an engine on random weights of a model's shape, with that context."""
    config = AutoConfig.from_pretrained(source, max_position_embeddings=context)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return LocalEngine(model, AutoTokenizer.from_pretrained(source))


def through_dspy(work: Work, engine: Any, threads: int) -> None:
    """Answer all questions by the program."""
    lm, plain = local_lm("local/model", engine, MAX_TOKENS, 0.0), PlainAdapter()
    with (
        dspy.context(lm=lm, adapter=plain, disable_history=True),
        sending_ahead(work.program, lm, plain) as ahead,
    ):
        asked = ahead.answered(work.questions) if ahead else work.questions
        rows = list(score_examples(work.program, asked, work.task.metric, threads=threads))
    assert not any(r.failure for r in rows), rows[0].failure


def continuous(work: Work, model: Any, end: int) -> None:
    """Answer all prompts by transformers' continuous batching, bounded as its defaults claim most of the memory.

    `end` is the token that ends an answer.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    tokens = sum(len(p) + MAX_TOKENS for p in work.prompts)
    model.generate_batch(
        inputs=work.prompts,
        generation_config=GenerationConfig(
            max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=min(tokens // 32 + 64, 768), max_batch_tokens=4096, max_requests_per_batch=32
        ),
        progress_bar=False,
    )


def floor(work: Work, model: Any) -> None:
    """Run each distinct token once, then decode in one full batch, as plain forward passes."""
    ends = [p[work.shared :] for p in work.prompts]
    width = max(len(e) for e in ends)
    batch = torch.tensor([[0] * (width - len(e)) + e for e in ends], device=model.device)
    shared = torch.tensor([work.prompts[0][: work.shared]], device=model.device)
    cache = DynamicCache()
    with torch.inference_mode():
        model(shared, past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(ends))
        for _ in range(MAX_TOKENS):
            batch = model(batch, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)


def seconds(action: Callable[[], None], repeats: int) -> float:
    """Return the least time of several runs: what the machine's other work disturbs least."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def measured(engine: LocalEngine, model: Any, work: Work, few: int, repeats: int) -> tuple[str, Bars]:
    """Return the line of one size and what it reached; `model` is another copy of the engine's."""
    model.set_attn_implementation("sdpa")
    questions, first = len(work.questions), Work(work.task, work.program, work.questions[:few], [], work.shared)

    def cold() -> None:
        engine.prefixes.clear()
        through_dspy(work, engine, 32)

    through_dspy(first, engine, 32)
    engine_rate = questions / seconds(cold, repeats)
    floor_rate = questions / seconds(lambda: floor(work, model), repeats)
    single = few / seconds(lambda: through_dspy(first, OneAtATime(engine, model), 1), 1)
    batched = questions / seconds(lambda: continuous(work, model, engine.tokenizer.eos_token_id), 1)
    longest = max(len(p) for p in work.prompts)
    reached = Bars(engine_rate / single, engine_rate / batched, floor_rate / engine_rate)
    line = (
        f"{longest:13d}  {single:16.2f}  {batched:16.2f}  {engine_rate:12.1f}  {floor_rate:7.1f}"
        f"  {reached.over_single:5.1f}  {reached.over_batched:5.1f}  {reached.over_floor:16.2f}"
    )
    return line, reached


def verdict(sizes: Sequence[Bars], bars: Bars) -> tuple[str, bool]:
    """Return in words whether all sizes reach the bars, and whether they do."""
    reached = all(
        s.over_single >= bars.over_single and s.over_batched >= bars.over_batched and s.over_floor <= bars.over_floor
        for s in sizes
    )
    wanted = f"c/a at least {bars.over_single:g}, c/b at least {bars.over_batched:g}, floor ratio at most"
    return f"{'reached' if reached else 'not reached'} at every size: {wanted} {bars.over_floor:g}", reached


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size and print the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="smollm2")
    p.add_argument("--questions", type=int, default=64)
    p.add_argument("--few", type=int, default=8, help="questions for (a), which is slow")
    p.add_argument("--demos", type=int, nargs="*", default=[64, 128, 512], help="as many as fit at most")
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--long", type=int, help="also fill a context of so many tokens, with random weights")
    a = p.parse_args(argv)
    logging.getLogger("dspy").setLevel(logging.ERROR)  # answers cut at MAX_TOKENS are meant to be
    source = weights_source(a.model)
    print(f"{a.model}; accelerator: {accelerator()}")
    print("prompt tokens  (a) one by one/s  (b) continuous/s  (c) engine/s  floor/s    c/a    c/b  floor time ratio")
    engine, plain = (LocalEngine.load(source) for _ in range(2))
    sizes = list[Bars]()
    for demos in a.demos:
        work = prepare(engine, demos, a.questions)
        line, reached = measured(engine, plain.model, work, a.few, a.repeats)
        sizes.append(reached)
        print(line, flush=True)
    if a.long:
        engine, plain = random_engine(source, a.long), random_engine(source, a.long)
        work = prepare(engine, 10_000, a.questions)
        line, reached = measured(engine, plain.model, work, a.few, a.repeats)
        sizes.append(reached)
        print(line, "random weights", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.2f} GB, {torch.get_num_threads()} threads")
    line, reached_all = verdict(sizes, GPU if torch.cuda.is_available() else PROCESSOR)
    print(line)
    return 0 if reached_all else 1


if __name__ == "__main__":
    sys.exit(main())
