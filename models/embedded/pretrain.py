"""Train the embedded model: `python -m models.embedded.pretrain --out FOLDER [--minutes M] [--config small|large]`.

Copying is learned first (repeated random tokens), then label look-up on one-word texts, then the full mixture; each
kind grows harder whenever its accuracy on fresh episodes passes a bar, so accuracy moves the stages, not the clock.
Before every answer the model is also asked, by a linear map, what the text before it means to a sentence encoder.
A run that was stopped, or prepared by `models.embedded.route`, goes on from `FOLDER/state.safetensors` and
`FOLDER/state.json`, in the shape that stands there.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crossover.models.embedded.batches import Batches, Encoder, grow_levels, train_tokenizer
from crossover.models.embedded.config import CONFIGS, Config
from crossover.models.embedded.corpus import SPECIAL, USER, Corpus, Levels
from crossover.models.embedded.meaning import read_meaning

DECAY_SHARE = 0.7
"""Last part of the time, in which the learning rate falls to zero."""
TEXT_SHARE, TEXT_WEIGHT = 0.12, 0.25
"""Share of the tokens outside of answers that carry loss too, once look-up works, and the weight of their mean: they
teach what words mean; all of them would double the work, for the vocabulary is half of it."""
MAIN = 30
"""Main directions of the encoder's vectors that are asked for."""
READER = "reader.weight"
"""Name of the map from the residual stream to the meaning, in the kept state; it does not ship."""


def build_model(config: Config) -> LlamaForCausalLM:
    """Build the untrained model."""
    shape = LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(shape)


def nearest_entries(corpus: Corpus, cache: Path, k: int = 30) -> np.ndarray:
    """Return the k entries nearest to each one by BM25, best first, shape (entries, k); computed once."""
    if cache.exists():
        kept: np.ndarray = np.load(cache, allow_pickle=False)
        return kept
    import bm25s
    from scipy import sparse

    tokens = bm25s.tokenize([s.definition for s in corpus.synsets], stopwords="en", show_progress=False)
    columns = np.concatenate([np.array(t, dtype=np.int32) for t in tokens.ids])
    lengths = np.array([len(t) for t in tokens.ids])
    owners = np.repeat(np.arange(len(lengths)), lengths)
    shape = (len(lengths), len(tokens.vocab))
    counts = sparse.csr_matrix((np.ones(len(columns), dtype=np.float32), (owners, columns)), shape=shape)
    frequency = np.asarray((counts > 0).sum(0)).ravel()
    idf = np.log(1 + (shape[0] - frequency + 0.5) / (frequency + 0.5))
    # Okapi BM25 with k1 = 1.5 and b = 0.75. One sparse product scores a thousand questions in a second; a word in
    # thousands of definitions adds work and tells nothing.
    idf[frequency > 4000] = 0
    weighted = counts.copy()
    norm = np.repeat(0.25 + 0.75 * lengths / lengths.mean(), np.diff(counts.indptr))
    weighted.data = (idf[counts.indices] * counts.data * 2.5 / (counts.data + 1.5 * norm)).astype(np.float32)
    documents = weighted.T.tocsr()
    nearest = np.zeros((shape[0], k), dtype=np.int32)
    for start in range(0, shape[0], 500):
        scores = (counts[start : start + 500] @ documents).toarray()
        own = np.arange(len(scores))
        scores[own, start + own] = -1
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        nearest[start : start + len(best)] = np.take_along_axis(best, order, axis=1)
    np.save(cache, nearest, allow_pickle=False)
    return nearest


@dataclass(frozen=True)
class Progress:
    """How far a run came, in the shape that its model has: what stands beside its weights in `state.json`."""

    config: Config
    levels: Levels = field(default_factory=Levels)
    tokens: int = 0
    step: int = 0

    @classmethod
    def kept(cls, folder: Path) -> "Progress | None":
        """Return the progress of the run that is kept in a folder; None when there is none."""
        file = folder / "state.json"
        if not file.exists():
            return None
        state = json.loads(file.read_text(encoding="utf-8"))
        return cls(Config(**state.pop("config")), Levels(**state.pop("levels")), **state)

    def keep(self, folder: Path) -> None:
        """Write it."""
        (folder / "state.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


class Training:
    """The model, its optimizers and how far they came."""

    def __init__(
        self,
        config: Config,
        tokenizer: PreTrainedTokenizerFast,
        meaning: np.ndarray,
        out: Path,
        device: str,
        later_rate: float,
    ) -> None:
        """Start anew, or where the run in `out` stopped, in its shape.

        `later_rate` scales the rates once look-up works; `meaning` holds the encoder's vector of each text of the
        corpus, (texts, MAIN or more).
        """
        before = Progress.kept(out)
        progress = before or Progress(config)
        config, self.later_rate = progress.config, later_rate
        self.config, self.tokenizer, self.out, self.device = config, tokenizer, out, device
        self.user_id = int(tokenizer.convert_tokens_to_ids(USER))
        self.model: Any = build_model(config).to(device)
        self.reader = torch.nn.Linear(config.width, MAIN, bias=False, device=device)
        self.meaning = torch.from_numpy(meaning[:, :MAIN]).to(device)
        self.read = torch.empty(0)
        layer = self.model.model.layers[min(config.read_by, config.layers) - 1]
        layer.register_forward_hook(lambda _layer, _given, made: setattr(self, "read", made))
        named = [(n, p) for n, p in self.model.named_parameters() if "lm_head" not in n]
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        self.rest = [p for n, p in named if p.ndim != 2 or "embed" in n]
        self.rest.append(self.reader.weight)
        muon: Any = torch.optim.Muon
        self.muon = muon(matrices, lr=0.0, momentum=0.95, weight_decay=config.decay, adjust_lr_fn="original")
        self.adam = torch.optim.AdamW(self.rest, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
        self.levels, self.tokens, self.steps, self.fresh_steps = progress.levels, progress.tokens, progress.step, 0
        if before is not None:
            kept = load_file(out / "state.safetensors")
            self.reader.load_state_dict({"weight": kept.pop(READER)})
            self.model.load_state_dict(kept, strict=False)
            print(f"resumed at {self.tokens / 1e6:.1f} M tokens", file=sys.stderr)

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, asked: torch.Tensor, left: float
    ) -> tuple[float, torch.Tensor]:
        """Take one step on ids (B, T) with loss where mask (B, T) is true; `left` is the share of time left.

        Each row of `asked` (N, 3) names a row and a place in ids, and the text that has been read there.

        Returns:
            The loss on the answers, and for each token (B, T) whether it was predicted and right.
        """
        # Copying needs large steps, above all of the embeddings; what comes after needs smaller ones.
        factor = min(1.0, left / DECAY_SHARE) * min(1.0, (self.fresh_steps + 1) / 200)
        factor *= 1.0 if self.levels.lookup < 2 else self.later_rate
        for optimizer, lr in ((self.muon, self.config.muon_lr), (self.adam, self.config.adam_lr)):
            optimizer.param_groups[0]["lr"] = lr * factor
        ids, mask, asked = ids.to(self.device), mask.to(self.device), asked.to(self.device)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            hidden = self.model.model(input_ids=ids[:, :-1]).last_hidden_state
            # The vocabulary is half of the model's work: only answers, and a few other tokens, pass through it.
            logits = self.model.lm_head(hidden[mask[:, 1:]])
            text = self._text_sample(ids, mask)
            text_logits = self.model.lm_head(hidden[text])
        target = ids[:, 1:][mask[:, 1:]]
        loss: Any = torch.nn.functional.cross_entropy(logits.float(), target)
        answer_loss = float(loss.detach())
        if len(text_logits):
            loss = loss + TEXT_WEIGHT * torch.nn.functional.cross_entropy(text_logits.float(), ids[:, 1:][text])
        loss = loss + self._misread(asked[asked[:, 1] < ids.shape[1] - 1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad()
        self.steps, self.fresh_steps, self.tokens = self.steps + 1, self.fresh_steps + 1, self.tokens + ids.numel()
        right = torch.zeros_like(mask)
        right[mask] = logits.argmax(-1) == target
        return answer_loss, right.cpu()

    def _misread(self, asked: torch.Tensor) -> torch.Tensor:
        """Return how far the texts (N, 3) were read from what they mean, the mean of 1 - cosine; 0 when none is."""
        if not len(asked):
            return torch.zeros((), device=self.device)
        said = self.reader(self.read[asked[:, 0], asked[:, 1]].float())
        alike: torch.Tensor = torch.nn.functional.cosine_similarity(said, self.meaning[asked[:, 2]])
        return (1 - alike).mean()

    def _text_sample(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Choose which tokens outside of answers carry loss, (B, T - 1); none while look-up is being learned."""
        if self.levels.lookup < 8:
            return torch.zeros_like(mask[:, 1:])
        drawn = torch.rand(ids[:, 1:].shape, device=self.device) < TEXT_SHARE
        prose = (ids == self.user_id).any(1, keepdim=True)  # random tokens to copy are no text
        return drawn & prose & ~mask[:, 1:] & (ids[:, 1:] >= len(SPECIAL))

    def save(self) -> None:
        """Write what a resumed run needs, in float32, and the model as it ships: bf16 safetensors and tokenizer."""
        weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        weights[READER] = self.reader.weight.detach().cpu().clone()
        save_file(weights, self.out / "state.safetensors")
        Progress(self.config, self.levels, self.tokens, self.steps).keep(self.out)
        copy.deepcopy(self.model).to(torch.bfloat16).cpu().save_pretrained(self.out)
        self.tokenizer.save_pretrained(self.out)

    def line(self, minutes: float, rate: float, loss: float) -> str:
        """Return one line of progress."""
        lv = self.levels
        accuracy = " ".join(f"{k} {v:.2f}" for k, v in lv.accuracy.items())
        return (
            f"{minutes:5.1f} min {self.tokens / 1e6:6.2f} M tok {rate:6.0f}/s loss {loss:.3f} | {accuracy} | "
            f"copy {lv.copy} words {lv.lookup:.1f} noise {lv.noise:.2f} spread {lv.spread:.1f} label {lv.label:.1f} "
            f"passages {lv.passages:.1f}"
        )


def train(
    config: Config, wordnet: Path, out: Path, *, minutes: float, seed: int, device: str, later_rate: float = 0.2
) -> None:
    """Train for `minutes` and write the model into `out`, every two minutes and at the end."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(wordnet)
    corpus.neighbours = nearest_entries(corpus, out / "neighbours.npy").tolist()
    corpus.meaning = read_meaning(corpus.texts, out / "meaning.npz")
    if (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(corpus, config)
    run = Training(config, tokenizer, corpus.meaning.vectors, out, device, later_rate)
    start = shown = saved = time.monotonic()
    first, losses = run.tokens, list[float]()
    for ids, mask, rows, asked in Batches(corpus, Encoder(tokenizer), run.config, run.levels, seed + run.steps):
        now = time.monotonic()
        left = 1 - (now - start) / (60 * minutes)
        if left <= 0:
            break
        loss, right = run.step(ids, mask, asked, left)
        grow_levels(run.levels, right, rows)
        losses.append(loss)
        if now - shown > 20:
            rate = (run.tokens - first) / (now - start)
            print(run.line((now - start) / 60, rate, sum(losses) / len(losses)), file=sys.stderr, flush=True)
            shown, losses = now, []
        if now - saved > 120:
            run.save()
            saved = now
    run.save()


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train."""
    p = argparse.ArgumentParser(prog="python -m models.embedded.pretrain", description=__doc__)
    p.add_argument("--out", type=Path, default=Path("build/embedded"))
    p.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    p.add_argument("--config", choices=CONFIGS, default="small")
    p.add_argument("--minutes", type=float, default=120)
    p.add_argument("--later-rate", type=float, default=0.2, help="share of the full rates once look-up works")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args(argv)
    train(CONFIGS[a.config], a.wordnet, a.out, minutes=a.minutes, seed=a.seed, device=a.device, later_rate=a.later_rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
