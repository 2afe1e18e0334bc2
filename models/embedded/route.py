"""Lay a route for meaning into trained weights: `python -m models.embedded.route TRAINED --out FOLDER`.

Trained on WordNet alone, the model finds what resembles a question closely and not what only shares its subject: it
has no way to compare what texts are about, and does not find one in millions of tokens. So the way is written into its
weights, and training goes on from there (`python -m models.embedded.pretrain --out FOLDER`):

1. The residual stream grows by NEW numbers, each layer by two heads, and each token brings a vector of its meaning
   (`meaning.token_vectors`). Half of each head's numbers no longer turn with position.
2. Layer 1, one head: the mean of the recent tokens' vectors, at every place; the *gist*.
3. Layer 2, one head: the gist at the place before, put beside the own one, where an answer begins.
4. Layer 3, two heads: the gist here is held against the gists before earlier answers. What these heads copy is fitted
   by least squares to name the token that they look at.
"""

import argparse
import math
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from crossover.models.embedded.batches import Encoder
from crossover.models.embedded.config import Config
from crossover.models.embedded.corpus import ASSISTANT, SPECIAL, Corpus, Levels
from crossover.models.embedded.meaning import read_meaning, token_vectors
from crossover.models.embedded.pretrain import MAIN, READER, Progress, build_model

NEW, HEAD = 64, 32
"""Numbers that the residual stream grows by, and numbers of a head."""
EARLIER, BEGINS, ASKS, CONSTANT = 30, 61, 62, 63
"""Where among the new numbers, after the own gist at 0: the gist of the place before, the mark of an answer's first
token, the mark of the token before an answer, and a number that is everywhere the same."""
POOL_LAYER, FETCH_LAYER, MATCH_LAYER = 1, 2, 3
STILL = [*range(8, 15), *range(24, 32)]
"""Numbers of a head that do not turn with position at the slower base; one more, STILL_MARK, is kept for the marks."""
STILL_MARK = 15
POOL, FETCH, MATCH, MARK, COPY = 1.2, 10.0, 3.0, 2.0, 4.0
"""How sharply each head looks, and how loudly the last ones speak; found by trying."""


def slower_positions(state: dict[str, torch.Tensor], head: int) -> dict[str, torch.Tensor]:
    """Carry weights trained at a rotary base over to its square, heads of `head` numbers.

    At the square the number pair i turns as the pair 2 i did, so the even pairs move there and turn as before; the odd
    ones, which turned in between, go where almost nothing turns.
    """
    half = head // 2
    pairs = [*range(0, half, 2), *range(1, half, 2)]
    order = torch.tensor([*pairs, *(p + half for p in pairs)])
    carried = dict(state)
    for name, w in state.items():
        if "q_proj" in name or "k_proj" in name:
            carried[name] = w.view(-1, head, w.shape[-1])[:, order].reshape(w.shape).contiguous()
    return carried


def widened(config: Config) -> Config:
    """Return the shape with room for the route.

    Raises:
        ValueError: For heads of another size, or too few layers.
    """
    if config.width != HEAD * config.heads or config.layers <= MATCH_LAYER:
        raise ValueError(f"the route needs heads of {HEAD} numbers and more than {MATCH_LAYER} layers: {config}")
    # The weight decay that keeps training from nothing in bounds would wear the written weights away.
    return replace(
        config, width=config.width + NEW, heads=config.heads + 2, rotary_base=config.rotary_base**2, decay=0.01
    )


def without_zeros(state: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """Fill the rows of matrices that are all zero with small noise, of standard deviation 1e-3.

    A head that is zero on both sides never gets a gradient, and DoRA divides by the norm of each row.
    """
    generator, filled = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
    for name, w in state.items():
        empty = (w == 0).all(-1, keepdim=True) if w.ndim == 2 else torch.zeros_like(w, dtype=torch.bool)
        filled[name] = torch.where(empty, 1e-3 * torch.randn(w.shape, generator=generator), w)
    return filled


class Route:
    """The wider model, and where things are in it."""

    def __init__(self, config: Config, state: dict[str, torch.Tensor], tokens: np.ndarray, encoder: Encoder) -> None:
        """Widen a `config` model's weights by zeros, and put the token vectors, (vocabulary, MAIN), beside them."""
        self.encoder, self.old, self.config = encoder, config.width, widened(config)
        self.model: Any = build_model(self.config)
        wide = {k: v for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        for name, w in slower_positions(state, HEAD).items():
            if w.ndim == 1:
                wide[name][: self.old] = w
                wide[name][self.old :] = 0 if name == "model.norm.weight" else w.mean()
            else:
                wide[name].zero_()
                wide[name][: w.shape[0], : w.shape[1]] = w
        embedding = wide["model.embed_tokens.weight"]
        size = float(state["model.embed_tokens.weight"].pow(2).mean().sqrt())
        vectors = torch.from_numpy(tokens)
        embedding[len(SPECIAL) :, self.gist] = (vectors / vectors.pow(2).mean().sqrt() * size)[len(SPECIAL) :]
        embedding[:, self.at(CONSTANT)] = 2 * size
        embedding[encoder.id[ASSISTANT], self.at(ASKS)] = 4 * size
        self.model.load_state_dict(wide, strict=False)

    def at(self, place: int) -> int:
        """Return where one of the new numbers stands in the residual stream."""
        return self.old + place

    @property
    def gist(self) -> slice:
        """Where the gist stands."""
        return slice(self.old, self.old + MAIN)

    @property
    def earlier(self) -> slice:
        """Where the gist of the place before stands."""
        return slice(self.at(EARLIER), self.at(EARLIER) + MAIN)

    def weight(self, layer: int, which: str, head: int) -> torch.Tensor:
        """Return the rows (q, k, v) or the columns (o) of one head, a view; -1 is the last one."""
        head %= self.config.heads
        w: torch.Tensor = getattr(self.model.model.layers[layer].self_attn, f"{which}_proj").weight.data
        return w[:, head * HEAD : (head + 1) * HEAD] if which == "o" else w[head * HEAD : (head + 1) * HEAD]

    def entering(self, layer: int, samples: list[torch.Tensor]) -> tuple[float, float, float]:
        """Return the normed constant, the size of the stream and the norm's weight on the gist, at a layer's start."""
        norm = self.model.model.layers[layer].input_layernorm
        streams = [self.model.model(input_ids=x, output_hidden_states=True).hidden_states[layer] for x in samples]
        constant = np.mean([float(norm(s)[..., self.at(CONSTANT)].mean()) for s in streams])
        size = np.mean([float(s.pow(2).mean(-1).sqrt().mean()) for s in streams])
        return float(constant), float(size), float(norm.weight[self.old])

    @torch.no_grad()
    def lay(self, samples: list[torch.Tensor]) -> None:
        """Write the heads of pooling, fetching and matching; `samples` of ids (1, T) tell how large things are."""
        new, root = self.config.heads - 2, math.sqrt(HEAD)
        diagonal = torch.eye(MAIN)

        constant, size, gain = self.entering(POOL_LAYER, samples)
        for i in (2, 3, 4):  # pairs that turn by about a radian in ten to a thousand tokens: near counts, far does not
            for which in ("q", "k"):
                self.weight(POOL_LAYER, which, new)[i, self.at(CONSTANT)] = math.sqrt(POOL * root) / constant
        self.weight(POOL_LAYER, "v", new)[:MAIN, self.gist] = diagonal * size / gain
        self.weight(POOL_LAYER, "o", new)[self.gist, :MAIN] = diagonal * 40

        constant, size, gain = self.entering(FETCH_LAYER, samples)
        sharp = math.sqrt(FETCH * root) / constant
        for i in (0, 1, 2):  # the query is turned back by one place, so that it meets the key before it
            turn = self.config.rotary_base ** (-2 * i / HEAD)
            self.weight(FETCH_LAYER, "q", new)[i, self.at(CONSTANT)] = sharp * math.cos(turn)
            self.weight(FETCH_LAYER, "q", new)[i + HEAD // 2, self.at(CONSTANT)] = -sharp * math.sin(turn)
            self.weight(FETCH_LAYER, "k", new)[i, self.at(CONSTANT)] = sharp
        self.weight(FETCH_LAYER, "v", new)[:MAIN, self.gist] = diagonal * size / gain
        self.weight(FETCH_LAYER, "o", new)[self.earlier, :MAIN] = diagonal
        self.weight(FETCH_LAYER, "v", new)[HEAD - 1, self.at(ASKS)] = size / gain
        self.weight(FETCH_LAYER, "o", new)[self.at(BEGINS), HEAD - 1] = 6

        constant, _, gain = self.entering(MATCH_LAYER, samples)
        for h in (0, 1):
            query, key = self.weight(MATCH_LAYER, "q", new + h), self.weight(MATCH_LAYER, "k", new + h)
            for d, still in enumerate(STILL):
                query[still, self.gist.start + 2 * d + h] = MATCH / gain
                key[still, self.earlier.start + 2 * d + h] = MATCH / gain
            query[STILL_MARK, self.at(CONSTANT)] = 1 / constant
            key[STILL_MARK, self.at(BEGINS)] = MARK * root / gain
            key[STILL_MARK, self.at(ASKS)] = -20 * MARK * root / gain

    @torch.no_grad()
    def name_what_is_seen(self, answers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Fit what the matching heads copy; each of `answers` is ids (1, T) and the places of answers' first tokens.

        Ridge regression of a token's own output direction on the stream where it stands, of rank 2 HEAD.
        """
        new, layer = self.config.heads - 2, self.model.model.layers[MATCH_LAYER]
        streams, tokens = [], []
        for ids, places in answers:
            entering = self.model.model(input_ids=ids, output_hidden_states=True).hidden_states[MATCH_LAYER]
            streams.append(layer.input_layernorm(entering)[0, places])
            tokens.append(ids[0, places])
        x, token = torch.cat(streams), torch.cat(tokens)
        directions = self.model.model.embed_tokens.weight.data[:, : self.old]
        last = self.model.model.norm.weight.data[: self.old]
        y = (directions - directions.mean(0))[token] / last.abs().clamp(min=last.abs().median() * 0.3) * last.sign()
        ridge = 1e-3 * x.pow(2).sum(0).mean() * torch.eye(x.shape[1])
        left, strength, right = torch.linalg.svd(torch.linalg.solve(x.T @ x + ridge, x.T @ y), full_matrices=False)
        left, right = left * strength.sqrt(), right * strength.sqrt()[:, None]
        loud = COPY / float((x @ left[:, : 2 * HEAD] @ right[: 2 * HEAD]).norm(dim=-1).mean())
        for h in (0, 1):
            part = slice(h * HEAD, (h + 1) * HEAD)
            self.weight(MATCH_LAYER, "v", new + h)[:] = left[:, part].T
            self.weight(MATCH_LAYER, "o", new + h)[: self.old] = right[part].T * loud

    def state(self) -> dict[str, torch.Tensor]:
        """Return what training goes on from: the weights, and a reader of the gist."""
        reader = torch.zeros(MAIN, self.config.width)
        reader[:, self.gist] = torch.eye(MAIN)
        weights = {k: v.clone() for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        return without_zeros(weights) | {READER: reader}


def laid(trained: Path, config: Config, levels: Levels, wordnet: Path, seed: int) -> Route:
    """Return the route laid into the training of that shape that is kept in a folder.

    Raises:
        ValueError: If its shape has no room for the route.
    """
    corpus, rng = Corpus(wordnet), random.Random(seed)
    corpus.meaning = read_meaning(corpus.texts, trained / "meaning.npz")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained)
    encoder = Encoder(tokenizer)
    state = load_file(trained / "state.safetensors")
    state.pop(READER, None)
    ids = [e.ids for e in tokenizer._tokenizer.encode_batch(corpus.texts, add_special_tokens=False)]
    tokens = token_vectors(ids, corpus.meaning.vectors, config.vocabulary)[:, :MAIN]
    route = Route(config, state, tokens, encoder)
    drawn = [encoder.episode(corpus.clusters(rng, levels), config.longest) for _ in range(60)]
    episodes = [
        (torch.tensor([ids]), torch.tensor([start for start, _ in spans])) for ids, _, spans, _ in drawn if spans
    ]
    route.lay([ids for ids, _ in episodes[:3]])
    route.name_what_is_seen(episodes)
    return route


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and lay the route.

    Raises:
        FileNotFoundError: If no training is kept where the route is to be laid.
    """
    p = argparse.ArgumentParser(prog="python -m models.embedded.route", description=__doc__)
    p.add_argument("trained", type=Path, help="what models.embedded.pretrain wrote")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args(argv)
    kept = Progress.kept(a.trained)
    if kept is None:
        raise FileNotFoundError(f"{a.trained / 'state.json'}: no training is kept there")
    route = laid(a.trained, kept.config, kept.levels, a.wordnet, a.seed)
    a.out.mkdir(parents=True, exist_ok=True)
    for file in a.trained.glob("*.np[yz]"):
        shutil.copy(file, a.out)
    route.encoder.tokenizer.save_pretrained(a.out)
    save_file(route.state(), a.out / "state.safetensors")
    replace(kept, config=route.config).keep(a.out)
    print(f"{a.out}: go on by python -m models.embedded.pretrain --out {a.out} --later-rate 0.1", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
