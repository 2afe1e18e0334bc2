"""The recipe of the embedded model, on a WordNet of a few entries."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from crossover.models.embedded.batches import Batches, Encoder, grow, kind_weights, train_tokenizer
from crossover.models.embedded.config import Config
from crossover.models.embedded.corpus import Corpus, Levels, read_wordnet
from crossover.models.embedded.meaning import Meaning, reduced, token_vectors
from crossover.models.embedded.pretrain import READER, Training, build_model, train
from crossover.models.embedded.route import (
    BEGINS,
    FETCH_LAYER,
    HEAD,
    MATCH_LAYER,
    Route,
    main,
    slower_positions,
    widened,
)

TINY = Config(width=32, layers=1, heads=2, feed_forward=64, vocabulary=600, context=512, batch_tokens=256, longest=256)
KINDS = ("lookup", "neighbour", "many", "describe", "extract", "recall", "topics", "scattered", "clusters")
ROUTED = replace(TINY, width=6 * HEAD, heads=6, layers=4)
LONG = 1 << 20


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data files in WordNet's own format: 300 nouns under ten parents, and one verb."""
    folder = tmp_path_factory.mktemp("wordnet")
    rng = random.Random(0)
    names = ["".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(3)) for _ in range(300)]
    lines = ["  1 This software and database is being provided to you\n"]
    for n, name in enumerate(names):
        pointer = f"001 @ {n % 10:08d} n 0000" if n >= 10 else "000"
        gloss = f"a {rng.choice(names)} that {rng.choice(names)} and {rng.choice(names)} near kin{n % 10}"
        lines.append(f'{n:08d} {3 + n % 20:02d} n 01 {name} 0 {pointer} | {gloss}; "the {name} was seen"\n')
    (folder / "data.noun").write_text("".join(lines))
    (folder / "data.verb").write_text("00000500 30 v 02 run 0 go_fast 0 000 01 + 02 00 | move with haste\n")
    for pos in ("adj", "adv"):
        (folder / f"data.{pos}").write_text("")
    return folder


@pytest.fixture(scope="module")
def corpus(wordnet: Path) -> Corpus:
    rng = np.random.default_rng(0)
    size = len(read_wordnet(wordnet))
    found = Corpus(wordnet, [list(rng.permutation(size)[:12]) for _ in range(size)])
    found.meaning = Meaning(
        found.texts,
        reduced(rng.normal(size=(len(found.texts), 200)).astype(np.float32)),
        rng.integers(0, 30, len(found.texts)),
        rng.integers(0, 4, 30),
    )
    return found


def test_wordnet_is_read(wordnet: Path) -> None:
    found = read_wordnet(wordnet)
    verb = found["v00000500"]
    assert (verb.words, verb.definition, verb.category) == (["run", "go fast"], "move with haste", "verb.change")
    noun = found["n00000012"]
    assert noun.parent == "n00000002"
    assert noun.examples == [f"the {noun.words[0]} was seen"]


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_are_encoded_as_the_chat_template_renders_them(kind: str, corpus: Corpus) -> None:
    tokenizer = train_tokenizer(corpus, TINY)
    encoder, rng = Encoder(tokenizer), random.Random(1)
    levels = Levels(lookup=6, noise=0.3, spread=5, label=3, passages=3)
    for _ in range(20):
        episode = getattr(corpus, kind)(rng, levels)
        ids, mask, spans, asked = encoder.episode(episode, LONG)
        turns = [(("user", t.user), ("assistant", t.answer)) for t in episode.turns]
        messages = [{"role": role, "content": text} for pair in turns for role, text in pair]
        if episode.instruction:
            messages.insert(0, {"role": "system", "content": episode.instruction})
        assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        answers = [t.answer for t in episode.turns if t.learn]
        assert [tokenizer.decode(ids[a : b - 1]).strip() for a, b in spans] == [a.strip() for a in answers]
        assert sum(mask) == sum(b - a for a, b in spans)
        assert [t for _, t in asked] == [t.text for t in episode.turns if t.text >= 0]
        assert all(ids[place] == encoder.id["<|assistant|>"] for place, _ in asked)
        if kind in ("clusters", "topics"):
            assert [set(t.user.split()) & set(corpus.texts[t.text].split()) != set() for t in episode.turns]


def test_an_episode_is_cut_between_turns_and_never_dropped(corpus: Corpus) -> None:
    encoder, rng = Encoder(train_tokenizer(corpus, TINY)), random.Random(3)
    cut = 0
    for _ in range(20):
        episode = corpus.scattered(rng, Levels(lookup=6, label=2))
        whole, _, _, _ = encoder.episode(episode, LONG)
        ids, mask, spans, asked = encoder.episode(episode, 300)
        assert ids == whole[: len(ids)]
        assert len(ids) <= 300
        assert ids[-1] == encoder.id["<|end|>"]
        assert len(mask) == len(ids)
        assert all(b <= len(ids) for _, b in spans)
        assert all(place < len(ids) for place, _ in asked)
        cut += len(ids) < len(whole)
    assert cut


def test_what_is_learned_can_be_told_from_the_context(corpus: Corpus) -> None:
    rng, levels = random.Random(2), Levels(lookup=6, spread=6, label=3)
    for kind in ("lookup", "neighbour", "many", "topics", "scattered", "clusters"):
        for _ in range(30):
            seen = set[str]()
            for turn in getattr(corpus, kind)(rng, levels).turns:
                assert not turn.learn or turn.answer in seen
                seen.add(turn.answer)


def test_accuracy_moves_the_stages() -> None:
    levels = Levels(copy=10)
    assert set(kind_weights(levels)) == {"copy"}
    levels.accuracy["copy"] = 0.5
    grow(levels, "copy")
    assert levels.copy == 10
    levels.accuracy["copy"] = 0.95
    grow(levels, "copy")
    assert levels.copy == 12
    assert set(kind_weights(levels)) == {"copy", "lookup"}


def test_batches_hold_their_token_bound(corpus: Corpus) -> None:
    levels = Levels(copy=20, lookup=2)
    batches = iter(Batches(corpus, Encoder(train_tokenizer(corpus, TINY)), TINY, levels, seed=0))
    for _ in range(20):
        ids, mask, rows, asked = next(batches)
        assert asked.shape[1] == 3
        assert ids.shape == mask.shape
        assert ids.numel() <= max(TINY.batch_tokens, ids.shape[1])
        assert len(rows) == len(ids)


def test_a_stopped_training_goes_on(wordnet: Path, tmp_path: Path) -> None:
    steps = []
    for _ in range(2):
        train(TINY, wordnet, tmp_path, minutes=0.03, seed=0, device="cpu")
        steps.append(json.loads((tmp_path / "state.json").read_text())["step"])
    assert 0 < steps[0] < steps[1]
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_the_meaning_of_a_text_is_asked_for_and_learned(corpus: Corpus, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus, TINY)
    run = Training(TINY, tokenizer, corpus.meaning.vectors, tmp_path, "cpu", 1.0)
    run.levels.lookup = 2  # the full rates
    ids, mask, _, _ = Encoder(tokenizer).episode(corpus.clusters(random.Random(0), Levels(lookup=8)), 256)
    x, m, asked = torch.tensor([ids]), torch.tensor([mask]).bool(), torch.tensor([[0, 5, 3], [0, 9, 3]])
    misread = []
    for _ in range(40):
        run.step(x, m, asked, 1.0)
        misread.append(run._misread(asked).item())
    assert misread[-1] < 0.5 * misread[0]
    assert float(run._misread(asked[:0])) == 0


def test_token_vectors_add_up_to_what_texts_mean() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(50, 8))
    texts = [rng.integers(0, 50, rng.integers(5, 20)).tolist() for _ in range(4000)]
    vectors = np.stack([true[t].sum(0) / np.sqrt(len(t)) for t in texts])
    found = token_vectors(texts, vectors, 51)
    np.testing.assert_allclose(found[:50], true, rtol=0.1, atol=0.1)
    assert not found[50].any()


def test_positions_turn_as_before_at_the_square_of_the_base() -> None:
    """A head that uses even pairs alone sees the same at both bases."""
    torch.manual_seed(0)
    config = replace(ROUTED, layers=1)
    before = build_model(config).eval()
    state = before.state_dict()
    for name, w in state.items():
        if "q_proj" in name or "k_proj" in name:
            w.view(-1, HEAD // 2, w.shape[-1])[:, 1::2] = 0
    after = build_model(replace(config, rotary_base=config.rotary_base**2)).eval()
    after.load_state_dict(slower_positions(state, HEAD))
    ids = torch.randint(6, 600, (1, 300))
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, before(ids).logits, atol=1e-4, rtol=1e-3)


def test_the_route_leads_from_a_question_to_answers_of_like_texts(corpus: Corpus) -> None:
    """Laid into weights that know nothing, it finds the answers whose texts share the question's meaning."""
    torch.manual_seed(0)
    encoder, rng = Encoder(train_tokenizer(corpus, ROUTED)), random.Random(4)
    tokens = np.random.default_rng(1).normal(size=(600, 30)).astype(np.float32)
    route = Route(
        ROUTED, {k: v for k, v in build_model(ROUTED).state_dict().items() if "head" not in k}, tokens, encoder
    )
    drawn = [encoder.episode(corpus.clusters(rng, Levels(lookup=8, label=1)), 500) for _ in range(30)]
    episodes = [(torch.tensor([ids]), torch.tensor([a for a, _ in spans])) for ids, _, spans, _ in drawn if spans]
    route.lay([ids for ids, _ in episodes[:3]])
    route.name_what_is_seen(episodes)
    words = [" ".join(rng.sample(corpus.words, 12)) for _ in range(3)]
    text = "".join(f"<|user|>{words[n]}<|end|><|assistant|>label{n}<|end|>" for n in (0, 1, 2, 1, 0, 2, 0, 1))
    ids = torch.tensor([encoder.tokenizer.encode(f"<|begin|>{text}<|user|>{words[2]}<|end|><|assistant|>")])
    with torch.no_grad():
        streams = route.model.model(ids, output_hidden_states=True).hidden_states
    firsts = [i + 1 for i, t in enumerate(ids[0, :-1].tolist()) if t == encoder.id["<|assistant|>"]]
    fetched = streams[FETCH_LAYER + 1][0]
    marks = fetched[:, route.at(BEGINS)]
    assert marks[firsts].median() > marks[[i for i in range(1, len(marks)) if i not in firsts]].max()
    entering = route.model.model.layers[MATCH_LAYER].input_layernorm(streams[MATCH_LAYER])[0].detach()
    alike = torch.nn.functional.cosine_similarity(entering[firsts, route.earlier], entering[-1:, route.gist])
    assert alike[[2, 5]].min() > alike[[0, 1, 3, 4, 6, 7]].max()

    named = sum(
        route.weight(MATCH_LAYER, "o", h) @ route.weight(MATCH_LAYER, "v", h) @ entering[firsts].T for h in (-2, -1)
    )
    said = (route.model.model.embed_tokens.weight @ named).argmax(0).detach()
    assert (said == ids[0, firsts]).float().mean() >= 0.5


def test_a_laid_route_is_trained_on(wordnet: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "trained", tmp_path / "routed"
    train(ROUTED, wordnet, first, minutes=0.02, seed=0, device="cpu")
    assert main([str(first), "--wordnet", str(wordnet), "--out", str(second)]) == 0
    laid = load_file(second / "state.safetensors")
    assert all((w != 0).any(-1).all() for name, w in laid.items() if w.ndim == 2), "DoRA divides by each row's norm"
    kept = json.loads((second / "state.json").read_text())
    assert kept["config"]["width"] == ROUTED.width + 64
    train(TINY, wordnet, second, minutes=0.02, seed=0, device="cpu")
    gone_on = json.loads((second / "state.json").read_text())
    assert gone_on["step"] > kept["step"]
    assert gone_on["config"] == kept["config"]
    assert READER not in load_file(second / "model.safetensors")
    with pytest.raises(ValueError, match="more than 3 layers"):
        widened(TINY)
    with pytest.raises(FileNotFoundError, match="no training is kept there"):
        main([str(tmp_path / "none"), "--wordnet", str(wordnet), "--out", str(second)])
