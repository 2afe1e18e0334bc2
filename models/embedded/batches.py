"""From WordNet to batches: the tokenizer, the encoding of episodes, the curriculum."""

import random
from collections.abc import Callable, Iterator

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from crossover.models.embedded.config import Config
from crossover.models.embedded.corpus import (
    ASSISTANT,
    BEGIN,
    CHAT_TEMPLATE,
    END,
    PAD,
    PRE_TOKEN,
    SPECIAL,
    SYSTEM,
    USER,
    Corpus,
    Episode,
    Levels,
)

Encoded = tuple[list[int], list[int], list[tuple[int, int]], list[tuple[int, int]]]
"""Ids, a 0/1 mask of the tokens that carry loss, the (start, end) of each learned answer, and for each text whose
meaning is known the place of the token before its answer, and the text's number."""
Batch = tuple[torch.Tensor, torch.Tensor, list[tuple[str, int, list[tuple[int, int]]]], torch.Tensor]
"""Ids (B, T), loss mask (B, T), for each row its kind, row number and answer spans, and one (row, place, text) for
each text whose meaning is known, (N, 3)."""


def train_tokenizer(corpus: Corpus, config: Config) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer; a word after a special token is the word inside a sentence."""
    t = Tokenizer(BPE())
    t.normalizer = normalizers.Prepend(" ")
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    t.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(corpus.tokenizer_text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=t,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=config.context,
    )


class Encoder:
    """Turn episodes into token ids and loss weights, exactly as the chat template renders them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Use the tokenizer's own ids for the special tokens."""
        self.tokenizer = tokenizer
        self.id = {s: int(tokenizer.convert_tokens_to_ids(s)) for s in SPECIAL}
        self.vocabulary = len(tokenizer)

    def episode(self, e: Episode, longest: int) -> Encoded:
        """Encode an episode of at most `longest` tokens.

        Turns beyond `longest` tokens are left out. Leaving out the whole episode instead kept the long ones from ever
        being seen: the model then fell apart at many demonstrations.
        """
        texts = [x for t in e.turns for x in (t.user, t.answer)] + [e.instruction]
        encoded = self.tokenizer._tokenizer.encode_batch(texts, add_special_tokens=False)
        ids, spans, asked = [self.id[BEGIN]], list[tuple[int, int]](), list[tuple[int, int]]()
        if e.instruction:
            ids += [self.id[SYSTEM], *encoded[-1].ids, self.id[END]]
        for k, turn in enumerate(e.turns):
            user, answer = encoded[2 * k].ids, encoded[2 * k + 1].ids
            if len(ids) + len(user) + len(answer) + 4 > longest:
                break
            ids += [self.id[USER], *user, self.id[END], self.id[ASSISTANT]]
            if turn.text >= 0:
                asked.append((len(ids) - 1, turn.text))
            if turn.learn:
                spans.append((len(ids), len(ids) + len(answer) + 1))
            ids += [*answer, self.id[END]]
        mask = [0] * len(ids)
        for a, b in spans:
            mask[a:b] = [1] * (b - a)
        return ids, mask, spans, asked

    def copy(self, rng: random.Random, lv: Levels) -> Encoded:
        """Return a block of random tokens, twice: the raw material of induction.

        More repeats would teach a fixed offset instead: a model trained on those got the second copy of a block right
        in 18 % and the third in 69 %.
        """
        n = rng.randint(max(3, lv.copy // 3), lv.copy)
        block = [rng.randrange(len(SPECIAL), self.vocabulary) for _ in range(n)]
        span = (n + 2, 2 * n + 1)
        ids = [self.id[BEGIN], *block, *block]
        return ids, [int(span[0] <= i < span[1]) for i in range(len(ids))], [span], []


UNLOCK: dict[str, Callable[[Levels], bool]] = {
    "copy": lambda lv: True,
    "lookup": lambda lv: lv.copy >= 12,
    "describe": lambda lv: lv.lookup >= 4,
    "many": lambda lv: lv.lookup >= 6,
    "neighbour": lambda lv: lv.lookup >= 6,
    "extract": lambda lv: lv.lookup >= 8,
    "recall": lambda lv: lv.lookup >= 8,
    "topics": lambda lv: lv.lookup >= 8,
    "clusters": lambda lv: lv.lookup >= 8,
    "scattered": lambda lv: lv.lookup >= 8,
}
WEIGHT = {
    "copy": 0.03,
    "lookup": 0.12,
    "describe": 0.4,
    "many": 0.08,
    "neighbour": 0.2,
    "extract": 0.04,
    "recall": 0.15,
    "topics": 0.15,
    "scattered": 0.08,
    "clusters": 0.25,
}


def kind_weights(lv: Levels) -> dict[str, float]:
    """Return the sampling weight of each unlocked kind; much of everything is copying until that is secure."""
    weights = {k: WEIGHT[k] for k, is_open in UNLOCK.items() if is_open(lv)}
    # What a kind has not learned yet gets up to four times its share.
    weights = {k: w * (1 + 3 * (1 - lv.accuracy.get(k, 0.0))) for k, w in weights.items()}
    if lv.copy < 16:
        weights["copy"] = sum(weights.values()) / 2
    return weights


def grow(lv: Levels, kind: str) -> None:
    """Make the kind harder when its accuracy passed its bar, and start measuring anew."""
    accuracy = lv.accuracy.get(kind, 0.0)
    if kind == "copy" and accuracy > 0.85 and lv.copy < 48:
        lv.copy = min(48, max(lv.copy + 1, lv.copy * 5 // 4))
    elif kind == "lookup" and accuracy > 0.8:
        if lv.lookup < 24:
            lv.lookup = min(24, lv.lookup * 1.25)
        elif lv.noise < 0.6:
            lv.noise = min(0.6, lv.noise + 0.03)
        lv.label = min(5, lv.label + 0.15)
        if lv.lookup >= 6:
            lv.spread = min(40, lv.spread * 1.15)
            lv.noise = max(lv.noise, min(0.3, lv.noise + 0.02))
    elif kind == "describe" and accuracy > 0.8:
        lv.passages = min(7, lv.passages + 0.25)
    else:
        return
    lv.accuracy[kind] = accuracy - 0.1


def batch_size(config: Config, lv: Levels) -> int:
    """Return the tokens of a step: small ones while the number of steps counts, larger ones when texts are long."""
    return config.batch_tokens * (1 if lv.lookup < 3 else 2)


class Batches:
    """Draw batches of episodes of similar length, padded on the right."""

    def __init__(self, corpus: Corpus, encoder: Encoder, config: Config, lv: Levels, seed: int) -> None:
        """Share `lv` with the training loop: what it grows shows in the next batch."""
        self.corpus, self.encoder, self.config, self.lv = corpus, encoder, config, lv
        self.rng = random.Random(seed)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end."""
        while True:
            drawn = []
            size = batch_size(self.config, self.lv)
            budget = 8 * size
            while budget > 0:
                weights = kind_weights(self.lv)
                kind = self.rng.choices(list(weights), list(weights.values()))[0]
                if kind == "copy":
                    item = self.encoder.copy(self.rng, self.lv)
                else:
                    item = self.encoder.episode(getattr(self.corpus, kind)(self.rng, self.lv), self.config.longest)
                if len(item[0]) <= self.config.longest and item[2]:
                    drawn.append((kind, item))
                    budget -= len(item[0])
            drawn.sort(key=lambda d: len(d[1][0]))
            groups: list[list[tuple[str, Encoded]]] = []
            group: list[tuple[str, Encoded]] = []
            for d in drawn:
                if group and len(d[1][0]) * (len(group) + 1) > size:
                    groups.append(group)
                    group = []
                group.append(d)
            groups.append(group)
            self.rng.shuffle(groups)
            for g in groups:
                length = max(len(i[0]) for _, i in g)
                ids = torch.full((len(g), length), self.encoder.id[PAD])
                mask = torch.zeros((len(g), length), dtype=torch.bool)
                asked = [(r, place, text) for r, (_, e) in enumerate(g) for place, text in e[3]]
                for r, (_, (x, m, _, _)) in enumerate(g):
                    ids[r, : len(x)] = torch.tensor(x)
                    mask[r, : len(m)] = torch.tensor(m, dtype=torch.bool)
                rows = [(kind, r, i[2]) for r, (kind, i) in enumerate(g)]
                yield ids, mask, rows, torch.tensor(asked, dtype=torch.long).reshape(-1, 3)


def grow_levels(lv: Levels, right: torch.Tensor, rows: list[tuple[str, int, list[tuple[int, int]]]]) -> None:
    """Update each kind's running accuracy (every token of an answer right) and its level."""
    for kind, r, spans in rows:
        for a, b in spans:
            hit = float(right[r, a:b].all() if kind != "copy" else right[r, a:b].float().mean())
            lv.accuracy[kind] = 0.995 * lv.accuracy.get(kind, 0.0) + 0.005 * hit
        grow(lv, kind)
