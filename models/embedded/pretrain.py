"""Train the embedded model: `python -m models.embedded.pretrain --out FOLDER [--minutes M] [--config small|large]`.

Copying is learned first (repeated random tokens), then label look-up on one-word texts, then the full mixture; each
kind grows harder whenever its accuracy on fresh episodes passes a bar, so accuracy moves the stages, not the clock.
A run that was stopped goes on from `FOLDER/state.safetensors` and `FOLDER/state.json`.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.embedded.corpus import (
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


@dataclass(frozen=True)
class Config:
    """Shape of the model and of its training."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 512
    vocabulary: int = 8192
    context: int = 4096
    batch_tokens: int = 2048
    """Tokens of one step while copying is learned, when the number of steps counts; four times as many at the end."""
    longest: int = 2048
    """Longest episode in tokens."""
    muon_lr: float = 0.02
    adam_lr: float = 0.01
    decay: float = 0.05
    """Weight decay of the matrices. Without it the noise of small batches piles up in Muon's full-size steps: a run
    of 11 M tokens ended with weights ten times too large and never learned to copy."""


CONFIGS = {
    "small": Config(),
    "large": Config(width=384, layers=7, heads=6, feed_forward=1024, batch_tokens=16384, longest=4096),
}


def train_tokenizer(corpus: Corpus, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer; a word after a special token is the word inside a sentence."""
    t = Tokenizer(BPE())
    t.normalizer = normalizers.Prepend(" ")
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRE_TOKEN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    t.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(corpus.tokenizer_text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=t, bos_token=BEGIN, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT], clean_up_tokenization_spaces=False,
    )  # fmt: skip


class Encoder:
    """Turn episodes into token ids and loss weights, exactly as the chat template renders them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Use the tokenizer's own ids for the special tokens."""
        self.tokenizer = tokenizer
        self.id = {s: int(tokenizer.convert_tokens_to_ids(s)) for s in SPECIAL}
        self.vocabulary = len(tokenizer)

    def episode(self, e: Episode) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """Return ids, a 0/1 mask of the tokens that carry loss, and the (start, end) of each learned answer."""
        texts = [x for t in e.turns for x in (t.user, t.answer)] + [e.instruction]
        encoded = self.tokenizer._tokenizer.encode_batch(texts, add_special_tokens=False)
        ids, spans, mask = [self.id[BEGIN]], [], [0]
        if e.instruction:
            ids += [self.id[SYSTEM], *encoded[-1].ids, self.id[END]]
        for k, turn in enumerate(e.turns):
            user, answer = encoded[2 * k].ids, encoded[2 * k + 1].ids
            ids += [self.id[USER], *user, self.id[END], self.id[ASSISTANT]]
            if turn.learn:
                spans.append((len(ids), len(ids) + len(answer) + 1))
            ids += [*answer, self.id[END]]
        mask = [0] * len(ids)
        for a, b in spans:
            mask[a:b] = [1] * (b - a)
        return ids, mask, spans

    def copy(self, rng: random.Random, lv: Levels) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """Return a block of random tokens, twice: the raw material of induction.

        More repeats would teach a fixed offset instead: a model trained on those got the second copy of a block right
        in 18 % and the third in 69 %.
        """
        n = rng.randint(max(3, lv.copy // 3), lv.copy)
        block = [rng.randrange(len(SPECIAL), self.vocabulary) for _ in range(n)]
        span = (n + 2, 2 * n + 1)
        ids = [self.id[BEGIN], *block, *block]
        return ids, [int(span[0] <= i < span[1]) for i in range(len(ids))], [span]


UNLOCK = {
    "copy": lambda lv: True,
    "lookup": lambda lv: lv.copy >= 12,
    "describe": lambda lv: lv.lookup >= 4,
    "many": lambda lv: lv.lookup >= 6,
    "neighbour": lambda lv: lv.lookup >= 6,
    "extract": lambda lv: lv.lookup >= 8,
}
WEIGHT = {"copy": 0.04, "lookup": 0.2, "describe": 0.2, "many": 0.16, "neighbour": 0.25, "extract": 0.15}


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
            lv.spread = min(40, lv.spread * 1.06)
            lv.noise = max(lv.noise, min(0.3, lv.noise + 0.02))
    elif kind == "describe" and accuracy > 0.8:
        lv.passages = min(7, lv.passages + 0.25)
    else:
        return
    lv.accuracy[kind] = accuracy - 0.1


def batch_size(config: Config, lv: Levels) -> int:
    """Return the tokens of a step: small steps first, larger ones when texts are long."""
    return config.batch_tokens * (1 if lv.lookup < 3 else 2 if lv.lookup < 10 else 4)


class Batches:
    """Draw batches of episodes of similar length, padded on the right."""

    def __init__(self, corpus: Corpus, encoder: Encoder, config: Config, lv: Levels, seed: int) -> None:
        """Share `lv` with the training loop: what it grows shows in the next batch."""
        self.corpus, self.encoder, self.config, self.lv = corpus, encoder, config, lv
        self.rng = random.Random(seed)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[tuple[str, int, list[tuple[int, int]]]]]]:
        """Yield ids (B, T), loss mask (B, T), and for each row its kind, row number and answer spans."""
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
                    item = self.encoder.episode(getattr(self.corpus, kind)(self.rng, self.lv))
                if len(item[0]) <= self.config.longest and item[2]:
                    drawn.append((kind, item))
                    budget -= len(item[0])
            drawn.sort(key=lambda d: len(d[1][0]))
            groups, group = [], []
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
                for r, (_, (x, m, _)) in enumerate(g):
                    ids[r, : len(x)] = torch.tensor(x)
                    mask[r, : len(m)] = torch.tensor(m, dtype=torch.bool)
                yield ids, mask, [(kind, r, i[2]) for r, (kind, i) in enumerate(g)]


def build_model(config: Config) -> LlamaForCausalLM:
    """Build the untrained model."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary, hidden_size=config.width, intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, max_position_embeddings=config.context,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, tie_word_embeddings=True,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    )


def nearest_entries(corpus: Corpus, cache: Path, k: int = 30) -> np.ndarray:
    """Return the k entries nearest to each one by BM25, best first, shape (entries, k); computed once."""
    if cache.exists():
        return np.load(cache, allow_pickle=False)
    import bm25s

    texts = [s.definition for s in corpus.synsets]
    tokens = bm25s.tokenize(texts, stopwords="en", show_progress=False)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    found, _ = index.retrieve(bm25s.tokenize(texts, stopwords="en", show_progress=False), k=k + 1, show_progress=False, n_threads=2)
    rows = np.array([[j for j in row if j != i][:k] for i, row in enumerate(found)], dtype=np.int32)
    np.save(cache, rows, allow_pickle=False)
    return rows


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the shippable model: bf16 safetensors, configuration, tokenizer, chat template."""
    import copy

    copy.deepcopy(model).to(torch.bfloat16).cpu().save_pretrained(out)
    tokenizer.save_pretrained(out)


def train(config: Config, wordnet: Path, out: Path, minutes: float, seed: int, device: str) -> None:
    """Train for `minutes` and write the model into `out`, every two minutes and at the end."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(wordnet)
    corpus.neighbours = nearest_entries(corpus, out / "neighbours.npy").tolist()
    if (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(corpus, config.vocabulary)
        tokenizer.save_pretrained(out)
    model = build_model(config).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=config.decay, adjust_lr_fn="original")
    adam = torch.optim.AdamW(rest, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    lv, tokens, step = Levels(), 0, 0
    state: dict[str, Any] = {}
    if (out / "state.json").exists():
        state = json.loads((out / "state.json").read_text())
        model.load_state_dict(load_file(out / "state.safetensors"), strict=False)
        lv, tokens, step = Levels(**state["levels"]), state["tokens"], state["step"]
        print(f"resumed at {tokens / 1e6:.1f} M tokens", file=sys.stderr)
    encoder = Encoder(tokenizer)
    start = shown = saved = time.monotonic()
    loss_sum, loss_n = 0.0, 0
    first = step
    for ids, mask, rows in Batches(corpus, encoder, config, lv, seed + step):
        elapsed = time.monotonic() - start
        left = 1 - elapsed / (60 * minutes)
        if left <= 0:
            break
        # Constant, then linear to zero over the last 40 % of the time; a short warm-up also after a resume.
        # Copying needs large steps, above all of the embeddings; what comes after needs smaller ones.
        factor = min(1.0, left / 0.4) * min(1.0, (step - first + 1) / 50) * (1.0 if lv.lookup < 2 else 0.4)
        for group, lr in ((muon, config.muon_lr), (adam, config.adam_lr)):
            group.param_groups[0]["lr"] = lr * factor
        ids, mask = ids.to(device), mask.to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
            logits = model.lm_head(hidden[mask[:, 1:]])
        target = ids[:, 1:][mask[:, 1:]]
        loss = torch.nn.functional.cross_entropy(logits.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step(), adam.step()
        muon.zero_grad(), adam.zero_grad()
        step, tokens = step + 1, tokens + int(ids.numel())
        loss_sum, loss_n = loss_sum + float(loss.detach()), loss_n + 1
        right = torch.zeros_like(mask)
        right[mask] = logits.argmax(-1) == target
        grow_levels(lv, right.cpu(), rows)
        now = time.monotonic()
        if now - shown > 20:
            acc = " ".join(f"{k} {v:.2f}" for k, v in lv.accuracy.items())
            print(
                f"{elapsed / 60:5.1f} min {tokens / 1e6:6.2f} M tok {tokens_rate(tokens, state, elapsed):6.0f}/s loss {loss_sum / loss_n:.3f} | {acc} | copy {lv.copy} "
                f"words {lv.lookup:.1f} noise {lv.noise:.2f} spread {lv.spread:.1f} label {lv.label:.1f} passages {lv.passages:.1f}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            shown, loss_sum, loss_n = now, 0.0, 0
        if now - saved > 120:
            save_state(model, lv, tokens, step, config, out)
            save_model(model, tokenizer, out)
            saved = now
    save_state(model, lv, tokens, step, config, out)
    save_model(model, tokenizer, out)


def tokens_rate(tokens: int, state: dict[str, Any], elapsed: float) -> float:
    """Return tokens per second of this process."""
    return (tokens - int(state.get("tokens", 0))) / max(elapsed, 1e-9)


def grow_levels(lv: Levels, right: torch.Tensor, rows: list[tuple[str, int, list[tuple[int, int]]]]) -> None:
    """Update each kind's running accuracy (every token of an answer right) and its level."""
    for kind, r, spans in rows:
        for a, b in spans:
            hit = float(right[r, a:b].all() if kind != "copy" else right[r, a:b].float().mean())
            lv.accuracy[kind] = 0.995 * lv.accuracy.get(kind, 0.0) + 0.005 * hit
        grow(lv, kind)


def save_state(model: LlamaForCausalLM, lv: Levels, tokens: int, step: int, config: Config, out: Path) -> None:
    """Write what a resumed run needs, in float32."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}, out / "state.safetensors")
    (out / "state.json").write_text(json.dumps({"levels": asdict(lv), "tokens": tokens, "step": step, "config": asdict(config)}))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train."""
    p = argparse.ArgumentParser(prog="python -m models.embedded.pretrain", description=__doc__)
    p.add_argument("--out", type=Path, default=Path("build/embedded"))
    p.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    p.add_argument("--config", choices=CONFIGS, default="small")
    p.add_argument("--minutes", type=float, default=120)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args(argv)
    train(CONFIGS[a.config], a.wordnet, a.out, a.minutes, a.seed, a.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
