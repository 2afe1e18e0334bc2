"""Batches follow the free memory, and one that does not fit is answered in halves, without a token lost or repeated."""

import gc
import json
import platform
import random
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import torch
from dspy import lm15
from heap import limit_growth, return_freed_blocks
from processes import FORKS, ended
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from crossover.models.batching import Job, decode_jobs
from crossover.models.constrained import Grammars
from crossover.models.decode import Prompt
from crossover.models.errors import UserError
from crossover.models.heads import HeadEngine
from crossover.models.local import LocalEngine
from crossover.models.memory import (
    SHARE,
    BatchBound,
    Size,
    free_bytes,
    left_in_cgroup,
    out_of_memory,
    release_memory,
)
from crossover.models.prefix import Prefix, extend

GPU_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB."


class SmallMemory(LlamaForCausalLM):
    """A model whose memory holds the states of so many tokens."""

    most_tokens = 10**9

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, **options: Any) -> Any:
        held = 0 if past_key_values is None else past_key_values.get_seq_length()
        taken = torch.ones(1000)
        if len(input_ids) * (held + input_ids.shape[1]) > self.most_tokens:
            refused.append((weakref.ref(taken), held))
            raise torch.OutOfMemoryError(GPU_TEXT)
        return super().forward(input_ids=input_ids, past_key_values=past_key_values, **options)


refused: list[tuple["weakref.ref[torch.Tensor]", int]] = []
"""A tensor of every call that did not fit, and the tokens that its batch had read by then."""


def engine(most_tokens: int) -> LocalEngine:
    refused.clear()
    model = SmallMemory.from_pretrained(tiny.FOLDER, dtype=torch.float32).eval()
    served = LocalEngine(model, AutoTokenizer.from_pretrained(tiny.FOLDER), prefix_bytes=0)
    model.most_tokens = most_tokens
    return served


def request(text: str) -> lm15.Request:
    config = lm15.Config(max_tokens=6)
    return lm15.Request(model="local/tiny", messages=(lm15.Message.user(text),), config=config)


def jobs(served: LocalEngine, shared: int) -> list[Job]:
    """Return requests that begin with `shared` tokens and end apart; every second is sampled, every third a label."""
    rng = random.Random(1)
    grammars = Grammars(served.tokenizer, served.model.config.vocab_size, served.stop, at_line=False)
    labels = grammars.compiled({"enum": ["card_arrival", "card_not_working", "refund"]})
    asked = []
    for n in range(12):
        grammar = None if n % 3 else labels
        ids = [7] * shared + [rng.randrange(100, 2000) for _ in range(5 + n % 4)] + (grammar.opening if grammar else [])
        asked.append(Job(Prompt(ids, 6, n % 2, n, grammar), ""))
    return asked


def answered(served: LocalEngine, asked: list[Job], prefix: Prefix | None) -> list[tuple[list[int], str]]:
    """Return the answers, of which every token was passed on once."""
    streamed: list[list[int]] = [[] for _ in asked]
    for job, tokens in zip(asked, streamed, strict=True):
        job.prompt = replace(job.prompt, on_token=tokens.append)
    with torch.inference_mode():
        decode_jobs(served, asked, prefix)
    answers = [job.answer.result() for job in asked]
    assert [tokens for tokens, _ in answers] == streamed
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0, 40])
def test_rows_that_do_not_fit_together_are_answered_as_without_a_bound(
    shared: int, capsys: pytest.CaptureFixture[str]
) -> None:
    served = engine(10**9)
    with torch.inference_mode():
        prefix = extend(served.model, None, [7] * shared, "") if shared else None
    free = answered(served, jobs(served, shared), prefix)
    assert refused == []
    # The first bound holds the prompts of the longest six rows, but not their answers; the second one row alone.
    for most in (6 * 8 + 3, 8 + 6):
        served = engine(most)
        assert answered(served, jobs(served, shared), prefix) == free
        assert any(held > 0 for _, held in refused)
        assert capsys.readouterr().err.count("does not fit in memory") == 1
        before = len(refused)
        assert answered(served, jobs(served, shared), prefix) == free
        assert len(refused) == before


def test_a_lone_prompt_that_does_not_fit_fails_alone_with_its_tokens_and_the_remedy() -> None:
    served = engine(200)
    long = request("text: " + "word " * 300)
    with ThreadPoolExecutor(4) as pool:
        bad, *good = (pool.submit(served.complete, r) for r in (long, *map(request, "abc")))
        assert all(g.result().message.text for g in good)
        with pytest.raises(UserError, match=r"^a prompt of 3\d\d tokens with 6 for the answer .*; shorten the prompt"):
            bad.result()
    assert isinstance(bad.exception(), UserError)
    gc.collect()
    assert refused
    assert all(tensor() is None for tensor, _ in refused)


def test_an_error_keeps_no_tensor_alive() -> None:
    served, broken = engine(10**9), list["weakref.ref[torch.Tensor]"]()

    def breaking(module: Any, args: Any) -> None:
        taken = torch.ones(1000)
        broken.append(weakref.ref(taken))
        try:
            raise KeyError("first")
        except KeyError as e:
            raise ValueError("a bug") from e

    served.model.lm_head.register_forward_pre_hook(breaking)
    with pytest.raises(ValueError, match="a bug") as caught:
        served.complete(request("a"))
    assert caught.value.__cause__ is not None
    assert [tensor() for tensor in broken] == [None]


def resident_megabytes(folder: str) -> None:
    """Let a thread free 200 MB in small blocks, and write what the process holds before, with them, freed, released."""
    held = [psutil.Process().memory_info().rss >> 20]

    def work() -> None:
        blocks = [bytearray(1 << 16) for _ in range(3200)]
        held.append(psutil.Process().memory_info().rss >> 20)
        del blocks[:-1]
        held.append(psutil.Process().memory_info().rss >> 20)
        release_memory()
        held.append(psutil.Process().memory_info().rss >> 20)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    Path(folder, "held.json").write_text(json.dumps(held))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries return what is freed")
def test_what_a_thread_has_freed_goes_back(tmp_path: Path) -> None:
    process: Any = FORKS.Process(target=resident_megabytes, args=(str(tmp_path),))
    process.start()
    assert ended(process) == 0
    before, full, freed, released = json.loads((tmp_path / "held.json").read_text())
    assert full - before >= 190
    # The last block holds the others in place.
    assert freed - before >= 190
    assert released - before <= 20


def test_a_head_reads_in_halves_what_does_not_fit() -> None:
    rows = [[5 + n] * (10 + n) for n in range(12)]
    states = []
    for most in (10**9, 50):
        served = engine(most)
        # Only the inner model reads, without the language model's head.
        inner = served.model.base_model
        inner.register_forward_pre_hook(too_many_for(most), with_kwargs=True)
        head = HeadEngine(served, torch.zeros(1, 1), torch.zeros(1), ["a"], pooling="last")
        states.append(head.states(rows))
        if most == 50:
            with pytest.raises(UserError, match="a prompt of 60 tokens"):
                head.states([*rows, [7] * 60])
    assert torch.allclose(*states, atol=1e-5)


def too_many_for(most: int) -> Any:
    def check(module: Any, args: Any, options: dict[str, Any]) -> None:
        if options["input_ids"].numel() > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    return check


def limited(out: str) -> None:
    """Answer in a process whose heap may grow by 70 MB: a row takes 6 MB a tensor, all rows together 100 MB."""
    return_freed_blocks()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 30_000,
        "initializer_range": 0.2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape)).eval()
    served = LocalEngine(model, tokenizer, prefix_bytes=0)
    requests = [request(f"text: {n} " + f"word {n} " * 20) for n in range(16)]
    alone = [served.complete(r).message.text for r in requests]
    # All threads begin before the heap is closed to their stacks.
    ready = threading.Barrier(len(requests), action=partial(limit_growth, 70))

    def ask(r: lm15.Request) -> str:
        ready.wait()
        return str(served.complete(r).message.text)

    with ThreadPoolExecutor(len(requests)) as pool:
        batched = list(pool.map(ask, requests))
    facts = {"alone": alone, "batched": batched, "lowered": served.bound.most_bytes is not None}
    Path(out).write_text(json.dumps(facts))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's heap is Linux's")
def test_a_batch_beyond_a_limit_on_memory_ends_with_every_row_answered(tmp_path: Path) -> None:
    process: Any = FORKS.Process(target=limited, args=(str(tmp_path / "facts"),))
    process.start()
    assert ended(process) == 0
    facts = json.loads((tmp_path / "facts").read_text())
    assert facts["lowered"]
    assert facts["batched"] == facts["alone"]


def test_batches_stay_within_the_bound_and_hold_every_row_once() -> None:
    model = LlamaForCausalLM.from_pretrained(tiny.FOLDER)
    rows = [(n % 17 + 1, n % 3) for n in range(200)]
    bound = BatchBound(model, 100)
    batches = list(bound.batches(rows))
    assert sorted(n for b in batches for n in b) == list(range(200))
    assert max(len(b) * (max(rows[n][0] for n in b) + max(rows[n][1] for n in b)) for b in batches) <= 100
    bound = BatchBound(model)
    assert len(list(bound.batches(rows))) == 1
    bound.lower(Size(64, 17, 2))
    assert max(len(b) for b in bound.batches([(17, 2)] * 200)) == 32
    bound.most_bytes = 1
    assert len(list(bound.batches(rows))) == 200


def test_free_memory_is_what_the_container_has_left(tmp_path: Path) -> None:
    assert left_in_cgroup(tmp_path) is None
    (tmp_path / "memory").mkdir()
    for folder, limit, used, field in (
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        (".", "memory.max", "memory.current", "inactive_file"),
    ):
        for name, text in ((limit, "1000\n"), (used, "600\n"), ("memory.stat", f"anon 1\n{field} 100\n")):
            (tmp_path / folder / name).write_text(text)
        assert left_in_cgroup(tmp_path) == 500
        (tmp_path / folder / limit).write_text("100\n")
        assert left_in_cgroup(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert left_in_cgroup(tmp_path) is None
    assert 0 < SHARE * free_bytes(torch.device("cpu")) < 1 << 50


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(GPU_TEXT), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory"), True),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected
