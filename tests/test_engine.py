"""The local engine: batches and shared prefixes change no logit and no answer."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from dspy import lm15
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from crossover.models.batching import Job, groups_by_prefix
from crossover.models.decode import Batch, Prompt, Row, can_share, decode
from crossover.models.device import LARGE, serving_dtype
from crossover.models.grammars import CHOICES, RULES
from crossover.models.local import LocalEngine
from crossover.models.prefix import SHORT, Prefix, PrefixStore, extend

VOCABULARY = 211
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def tokens(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(n)]


def reference(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0, -1]


def decoded(
    model: LlamaForCausalLM, prefix: Prefix | None, prompts: list[Prompt], stop: frozenset[int] = frozenset()
) -> dict[int, list[int]]:
    return dict(decode(model, prefix, [Row(n, p) for n, p in enumerate(prompts)], stop))


def test_a_model_that_is_trained_in_bfloat16_shares_prefixes_too() -> None:
    model = small_model()
    # As accelerate does; what rounds is no fault of the model.
    wrapped = model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    computed = set[torch.dtype]()
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, __, out: computed.add(out.dtype))
    assert can_share(model)
    assert computed == {torch.float32}
    assert model.forward is wrapped


def test_shared_prefixes_change_no_logit() -> None:
    rng, model, plain, rows = random.Random(2), small_model(), small_model(), 0
    assert can_share(model)
    with torch.inference_mode():
        while rows < 2000:
            start = tokens(rng, rng.choice([1, 3, 17, 90]))
            half = extend(model, None, start[: len(start) // 2], "") if rng.random() < 0.3 and len(start) > 1 else None
            prefix = extend(model, half, start, "").head(rng.randint(1, len(start)))
            ends = [tokens(rng, rng.randint(1, 20)) for _ in range(rng.randint(1, 12))]
            batch = Batch(model, prefix if rng.random() < 0.9 else None, [Prompt(e, 2) for e in ends])
            shared = start[: len(prefix)] if batch.prefix else []
            first, pushed = batch.logits, tokens(rng, len(ends))
            batch.push(pushed)
            for r in rng.sample(range(len(ends)), min(2, len(ends))):
                assert torch.allclose(first[r], reference(plain, shared + ends[r]), atol=1e-4)
                assert torch.allclose(batch.logits[r], reference(plain, [*shared, *ends[r], pushed[r]]), atol=1e-4)
            rows += len(ends)


def test_rows_that_end_early_leave_the_others_as_they_were() -> None:
    rng, model = random.Random(3), small_model()
    can_share(model)
    prefix = extend(model, None, tokens(rng, 40), "")
    prompts = [Prompt(tokens(rng, rng.randint(1, 9)), rng.randint(1, 12)) for _ in range(17)]
    with torch.inference_mode():
        together = decoded(model, prefix, prompts, frozenset(range(0, VOCABULARY, 5)))
        for n, p in enumerate(prompts):
            [alone] = decoded(model, prefix, [p], frozenset(range(0, VOCABULARY, 5))).values()
            assert together[n] == alone


def test_sampling_does_not_depend_on_the_rows_beside_it() -> None:
    rng, model = random.Random(4), small_model()
    prompts = [Prompt(tokens(rng, 6), 8, 1.0, seed) for seed in range(5)]
    with torch.inference_mode():
        together = decoded(model, None, prompts)
        [alone] = decoded(model, None, prompts[3:4]).values()
    assert together[3] == alone
    assert len({tuple(t) for t in together.values()}) == 5


def test_a_model_with_windows_shares_nothing_and_answers_as_generate_does() -> None:
    torch.manual_seed(1)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)).eval()
    assert not can_share(model)
    ids = tokens(random.Random(5), 30)
    told = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0, 30:].tolist()
    with torch.inference_mode():
        rows = decoded(model, None, [Prompt(ids, 6), Prompt(ids[:4], 6)])
    assert rows[0] == told


@pytest.fixture
def two_adapters(tmp_path: Path) -> list[Path]:
    folders = []
    for n in range(2):
        torch.manual_seed(n)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(LlamaForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float32), lora)
        folders.append(tmp_path / str(n))
        model.save_pretrained(folders[-1])
    return folders


def request(text: str, model: str = "local/tiny") -> lm15.Request:
    return lm15.Request(model=model, messages=(lm15.Message.user(text),), config=lm15.Config(max_tokens=6))


def test_a_prefix_of_one_adapter_is_never_used_under_another(two_adapters: list[Path]) -> None:
    shared = "an example of a long beginning that all prompts have " * 40
    warm, cold = LocalEngine.load(tiny.FOLDER), LocalEngine.load(tiny.FOLDER)
    cold.prefixes.max_bytes = 0
    names = ["", *(f"+{warm.add_adapter(f)}" for f in two_adapters)]
    for f in two_adapters:
        cold.add_adapter(f)
    asked = [request(f"{shared} {q}", f"local/tiny{name}") for q in range(8) for name in names]
    with ThreadPoolExecutor(12) as pool:
        answers = [r.message.text for r in pool.map(warm.complete, asked)]
        assert answers == [r.message.text for r in pool.map(cold.complete, asked)]
    assert len(set(answers)) > 1
    assert {p.adapter for p in warm.prefixes} == {name.removeprefix("+") for name in names}


def test_usage_tells_what_came_from_a_prefix() -> None:
    engine = LocalEngine.load(tiny.FOLDER)
    first, second = (engine.complete(request("a shared beginning of many words " * 60 + q)) for q in ("one", "two"))
    assert first.usage.cache_read_tokens == 0
    assert second.usage.cache_read_tokens > 0.9 * second.usage.input_tokens
    engine.prefixes.clear()
    assert engine.complete(request("a shared beginning of many words " * 60 + "three")).usage.cache_read_tokens == 0


def kept(ids: list[int], adapter: str = "") -> Prefix:
    states = (torch.zeros(1, 1, len(ids), 2),)
    return Prefix(np.array(ids), adapter, states, states)


def test_the_store_keeps_what_was_used_last_within_its_bound() -> None:
    store = PrefixStore(3 * kept([1] * 10).nbytes)
    for first in (1, 2, 3):
        store.keep(kept([first] * 10))
    assert len(store.longest(np.array([1] * 4 + [9]), "") or ()) == 4
    store.keep(kept([4] * 10))
    assert store.longest(np.array([2] * 10), "") is None
    assert store.longest(np.array([1] * 10), "other") is None
    store.keep(kept([4] * 11))
    assert [len(p) for p in store] == [10, 11]  # longer than before, so the one unused for longest went


def test_states_belong_to_one_owner_and_those_kept_briefly_end_with_their_context() -> None:
    store, ids = PrefixStore(10 * kept([1] * 10).nbytes), np.array([1] * 10)
    with store.belonging_to("a"):
        store.keep(kept([1] * 4))
    with store.belonging_to("b"):
        assert store.longest(ids, "") is None
    for _ in range(2):
        with store.belonging_to("a", briefly=True):
            assert len(store.longest(ids, "") or ()) == 4
            store.keep(kept([1] * 8))
            assert len(store.longest(ids, "") or ()) == 8


def test_prompts_that_begin_alike_are_grouped() -> None:
    rng = random.Random(6)
    block, other = tokens(rng, 100), tokens(rng, 100)
    jobs = [Job(Prompt(b + tokens(rng, 10), 4), "") for b in (block, other) for _ in range(5)]
    jobs += [Job(Prompt(tokens(rng, 50), 4), "") for _ in range(3)]
    groups = sorted((len(g), n) for g, n in groups_by_prefix(jobs))
    assert groups[-2:] == [(5, 100), (5, 100)]
    assert groups[:3] == [(1, 49)] * 3


def test_an_impossible_adapter_fails_its_own_requests_alone() -> None:
    engine = LocalEngine.load(tiny.FOLDER)
    with ThreadPoolExecutor(2) as pool:
        bad, good = (pool.submit(engine.complete, request("x", m)) for m in ("local/tiny+none", "local/tiny"))
        assert good.result().message.text
        with pytest.raises(ValueError, match="adapter none"):
            bad.result()


def test_the_tokenizer_of_a_base_model_stops_at_the_line() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER)
    tokenizer.chat_template = None
    model = LlamaForCausalLM.from_pretrained(tiny.FOLDER).eval()
    # The second time as it is saved after a training: with the template of the first.
    for _ in range(2):
        engine = LocalEngine(model, tokenizer)
        assert engine.stop_at_line
    assert "\n" not in (engine.complete(request("red, blue, red, blue,")).message.text or "")


def small() -> LocalEngine:
    return LocalEngine.load(tiny.FOLDER)


def ask(engine: LocalEngine, text: str, **config: object) -> lm15.Request:
    return lm15.Request(
        model="local/tiny", messages=(lm15.Message.user(text),), config=lm15.Config(max_tokens=24, **config)
    )


def only(answers: list[str]) -> dict[str, object]:
    return {"type": "json_schema", "schema": {RULES: "answer: value_0", CHOICES: {"value_0": answers}}}


LABELS = ["card_arrival", "card", "card_not_working", "transfer timing", "Refund"]


def test_choices_bind_every_answer_to_the_set_and_share_a_batch_with_free_ones() -> None:
    engine = small()
    texts = [f"text: where is my card number {n} and when will it come" for n in range(12)]
    free = [engine.complete(ask(engine, t)).text for t in texts]
    bound = ask(engine, texts[0], response_format=only(LABELS))
    with ThreadPoolExecutor(24) as pool:
        together = list(
            pool.map(
                lambda k: (
                    engine.complete(
                        ask(engine, texts[k // 2], **({} if k % 2 else {"response_format": only(LABELS)}))
                    ).text
                ),
                range(24),
            )
        )
    assert together[1::2] == free
    assert set(together[::2]) <= set(LABELS)
    assert not set(free) & set(LABELS)
    assert engine.complete(bound).text == together[0]
    assert {engine.complete(ask(engine, t, response_format=only(["card"]))).text for t in texts} == {"card"}


def test_the_likeliest_label_at_each_token_is_chosen() -> None:
    engine = small()
    shown = "\n".join(f"text: {w}" for w in ("river",))
    for answer in ("animal", "place of water"):
        text = engine.complete(ask(engine, shown, response_format=only([answer, "zzz qqq"]))).text
        assert text in (answer, "zzz qqq")
    ids = engine.encode([{"role": "user", "content": shown}])
    first = {a: engine.tokenizer.encode(a, add_special_tokens=False)[0] for a in ("animal", "plant", "time")}
    logits = tiny.logits(engine, ids)
    best = max(first, key=lambda a: float(logits[first[a]]))
    assert engine.complete(ask(engine, shown, response_format=only(list(first)))).text == best


def test_a_stream_tells_the_same_answer_piece_by_piece() -> None:
    engine = small()
    for n in range(6):
        request = ask(engine, f"passages: [1] Fox {n}: a small animal\nquestion: small animal?")
        events = list(engine.stream(request))
        pieces = [e.delta.text for e in events if e.type == "delta"]
        whole = engine.complete(request)
        assert "".join(pieces) == whole.text
        assert events[0].type == "start"
        assert events[-1].usage.output_tokens == whole.usage.output_tokens
        assert len(pieces) <= whole.usage.output_tokens
    with pytest.raises(lm15.ContextLengthError):
        list(engine.stream(ask(engine, "word " * 5000)))


def test_switching_adapters_leaves_base_and_adapters_what_they_were(two_adapters: list[Path]) -> None:
    engine, ids = LocalEngine.load(tiny.FOLDER), tokens(random.Random(7), 20)
    bare = tiny.logits(engine, ids)
    names = [engine.add_adapter(f) for f in two_adapters]
    alone = [LocalEngine.load(tiny.FOLDER) for _ in names]
    told = {"": bare} | {
        n: tiny.logits(e, ids, e.add_adapter(f)) for n, e, f in zip(names, alone, two_adapters, strict=True)
    }
    for name in ["", names[1], names[1], names[0], "", "", names[0], names[1], ""]:
        assert torch.equal(tiny.logits(engine, ids, name), told[name])
    with pytest.raises(ValueError, match="none"):
        tiny.logits(engine, ids, "none")
    assert torch.equal(tiny.logits(engine, ids), bare)


@pytest.mark.skipif(serving_dtype(LARGE) != torch.bfloat16, reason="this machine serves nothing in bfloat16")
def test_a_large_model_is_served_in_bfloat16_with_shared_prefixes(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = LlamaConfig(**SHAPE | {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536})
    exact = LlamaForCausalLM(config).eval()
    assert exact.num_parameters() >= LARGE
    exact.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.FOLDER).save_pretrained(tmp_path)
    engine = LocalEngine.load(tmp_path)
    assert engine.model.dtype == torch.bfloat16
    assert engine.prefixes.max_bytes > 0
    ids = tokens(random.Random(8), 60)
    with torch.inference_mode():
        true = exact(torch.tensor([ids])).logits[0, -1]
        shared = Batch(engine.model, extend(engine.model, None, ids[:40], ""), [Prompt(ids[40:], 1)]).logits[0]
    # As far from float32 as bfloat16 is without a prefix.
    off = (tiny.logits(engine, ids) - true).abs().mean()
    assert off < 0.02 * true.std()
    assert (shared - true).abs().mean() < 2 * off


@pytest.mark.parametrize("tokens_in_row", [40, SHORT + 8])
def test_training_on_a_processor_has_the_gradients_of_float32(tokens_in_row: int) -> None:
    ids = torch.tensor([tokens(random.Random(9), tokens_in_row) for _ in range(2)])
    mask = torch.ones_like(ids)
    mask[1, -5:] = 0
    gradients = []
    for mixed in (False, True):
        model = small_model()
        assert can_share(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            model(input_ids=ids, attention_mask=mask).logits[:, :-5].float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999
