"""The recipe of the embedded model, on a WordNet of a few entries."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from models.embedded.batches import Batches, Encoder, grow, kind_weights, train_tokenizer
from models.embedded.config import Config
from models.embedded.corpus import Corpus, Levels, read_wordnet
from models.embedded.pretrain import train

TINY = Config(width=32, layers=1, heads=2, feed_forward=64, vocabulary=600, context=512, batch_tokens=256, longest=256)
KINDS = ("lookup", "neighbour", "many", "describe", "extract", "recall", "topics", "scattered")
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
    return Corpus(wordnet, [list(rng.permutation(size)[:12]) for _ in range(size)])


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
        ids, mask, spans = encoder.episode(episode, LONG)
        turns = [(("user", t.user), ("assistant", t.answer)) for t in episode.turns]
        messages = [{"role": role, "content": text} for pair in turns for role, text in pair]
        if episode.instruction:
            messages.insert(0, {"role": "system", "content": episode.instruction})
        assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        answers = [t.answer for t in episode.turns if t.learn]
        assert [tokenizer.decode(ids[a : b - 1]).strip() for a, b in spans] == [a.strip() for a in answers]
        assert sum(mask) == sum(b - a for a, b in spans)


def test_an_episode_is_cut_between_turns_and_never_dropped(corpus: Corpus) -> None:
    encoder, rng = Encoder(train_tokenizer(corpus, TINY)), random.Random(3)
    cut = 0
    for _ in range(20):
        episode = corpus.scattered(rng, Levels(lookup=6, label=2))
        whole, _, _ = encoder.episode(episode, LONG)
        ids, mask, spans = encoder.episode(episode, 300)
        assert ids == whole[: len(ids)]
        assert len(ids) <= 300
        assert ids[-1] == encoder.id["<|end|>"]
        assert len(mask) == len(ids)
        assert all(b <= len(ids) for _, b in spans)
        cut += len(ids) < len(whole)
    assert cut


def test_what_is_learned_can_be_told_from_the_context(corpus: Corpus) -> None:
    rng, levels = random.Random(2), Levels(lookup=6, spread=6, label=3)
    for kind in ("lookup", "neighbour", "many", "topics", "scattered"):
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
        ids, mask, rows = next(batches)
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
