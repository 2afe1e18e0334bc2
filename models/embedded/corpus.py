"""Generate the training episodes of the embedded model from WordNet.

An episode is a conversation in the frame that serves it later: a user turn of `name: value` lines, an assistant
turn that is the bare value. Labels are symbols invented for the episode, so that only the context can tell them; in
`recall` they are WordNet's own, which only the weights can tell.
Source text: WordNet 3.0 (Debian's `wordnet-base`); none of the project's evaluation tasks is read here.
"""

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossover.models.embedded.meaning import Meaning

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = [PAD, BEGIN, END, SYSTEM, USER, ASSISTANT]
CHAT_TEMPLATE = (
    "{{ '"
    + BEGIN
    + "' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '"
    + END
    + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)
# A word keeps its space, underscore or dot, so that each token of `card_payment_fee` has one successor: a label
# whose tokens repeat ("_", then "_" again) is what a small model miscopies.
PRE_TOKEN = r" ?\p{L}+|[_.]\p{L}+|\p{N}|\n| ?[^\s\p{L}\p{N}]+|\s+"

INPUT_NAMES = ["text", "text", "text", "input", "question", "query", "sentence", "message", "description", "utterance"]
INSTRUCTIONS = [
    "Classify the text.",
    "Give the label.",
    "Name the category.",
    "Answer the question from the passages.",
    "Answer with the name.",
    "Choose the right label for the text.",
    "Give a short answer.",
]
WRAPPERS = [
    "what is {}?",
    "how do I {}?",
    "why {}?",
    "when {}?",
    "can you tell me about {}",
    "I want to know: {}",
    "please explain {}",
    "I am looking for {}",
    "is it {}?",
    "my {}, what now?",
    "help me with {}",
    "{}, please",
    "we need {}",
    "there is {} and I am not sure",
    "{}. Thanks!",
    "where can I find {}?",
]
RECALL = [
    "Name the field of the thing described.",
    "Name the kind of the thing described.",
    "Name the thing described.",
]


@dataclass
class Synset:
    """One WordNet entry."""

    words: list[str]
    """Lemmas, spaces for underscores."""
    definition: str
    examples: list[str]
    category: str
    """Lexicographer file, such as `noun.animal`."""
    parent: str
    """Key of the first hypernym, or empty."""


LEXFILES = (  # noqa: SIM905
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition "
    "noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person "
    "noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state "
    "noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition "
    "verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social "
    "verb.stative verb.weather adj.ppl"
).split()


def read_wordnet(folder: Path) -> dict[str, Synset]:
    """Parse WordNet's data files (format: wndb(5WN)) into synsets by part of speech and offset."""
    synsets = {}
    for pos, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        for line in (folder / f"data.{pos}").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(" "):
                continue
            head, _, gloss = line.partition(" | ")
            parts = head.split()
            n_words = int(parts[3], 16)
            words = [re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in parts[4 : 4 + 2 * n_words : 2]]
            pointers = parts[5 + 2 * n_words :]
            parent = next(
                (
                    f"n{o}" if p == "n" else f"v{o}"
                    for s, o, p in zip(pointers, pointers[1:], pointers[2:], strict=False)
                    if s in ("@", "@i")
                ),
                "",
            )
            examples = [e for quoted in re.findall(r'"([^"]+)"', gloss) if (e := quoted.strip(" .;"))]
            definition = re.split(r'[;:]?\s*"', gloss)[0].strip(" ;")
            if definition:
                synsets[letter + parts[0]] = Synset(words, definition, examples, LEXFILES[int(parts[1])], parent)
    return synsets


@dataclass
class Turn:
    """One question and its answer."""

    user: str
    answer: str
    learn: bool = True
    """Whether the context so far can tell the answer; only such answers carry loss."""
    text: int = -1
    """Which of the corpus's texts is asked about, when it is (nearly) whole; -1 when none is."""


@dataclass
class Episode:
    """One conversation."""

    kind: str
    turns: list[Turn]
    instruction: str = ""


@dataclass
class Levels:
    """How hard each kind of episode is at present; grown by held-out accuracy, never by the clock."""

    copy: int = 10
    """Random tokens to repeat."""
    lookup: float = 1.0
    """Words of a text in `lookup`."""
    noise: float = 0.0
    """Share of words dropped, moved or replaced in a question."""
    spread: float = 3.0
    """Demonstrations in an episode."""
    label: float = 1.0
    """Words of a label."""
    passages: float = 1.0
    """Passages in an episode."""
    accuracy: dict[str, float] = field(default_factory=dict)


class Corpus:
    """Draw episodes; every kind is a method of the same shape."""

    meaning: Meaning
    """What `texts` mean; set before episodes are drawn that need it."""

    def __init__(self, folder: Path, neighbours: Sequence[Sequence[int]] | None = None) -> None:
        """Read WordNet from `folder`; `neighbours[i]` lists the entries most similar to entry i, best first."""
        by_key = read_wordnet(folder)
        self.keys = list(by_key)
        self.synsets = list(by_key.values())
        self.by_key = by_key
        self.neighbours = neighbours
        counts = Counter(w for s in self.synsets for w in s.definition.lower().split() if w.isalpha())
        self.words = [w for w, n in counts.items() if n >= 3 and len(w) > 2]
        self.frequent = [w for w, _ in counts.most_common(4000) if len(w) > 2]
        self.synonyms: dict[str, list[str]] = defaultdict(list)
        for s in self.synsets:
            single = [w.lower() for w in s.words if w.isalpha()]
            for w in single:
                self.synonyms[w].extend(x for x in single if x != w)
        self.texts = [s.definition for s in self.synsets] + [e for s in self.synsets for e in s.examples]
        self.class_names = [self._depth_class(i) for i in range(len(self.synsets))]
        below = Counter(a for s in self.synsets for a in self._ancestors(s))
        frequent = {a for a, n in below.items() if n >= 100}
        self.kinds = [
            next((by_key[a].words[0] for a in self._ancestors(s) if a in frequent), s.category) for s in self.synsets
        ]
        self.by_field, self.by_kind = self._grouped([s.category for s in self.synsets]), self._grouped(self.kinds)

    def _ancestors(self, s: Synset) -> list[str]:
        """Return the keys of what the entry is a kind of, nearest first."""
        found: list[str] = []
        while s.parent in self.by_key and s.parent not in found:
            found.append(s.parent)
            s = self.by_key[s.parent]
        return found

    def _grouped(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Return the entries of each name that has enough of them to show many; 1 in 1,200 is 100 in WordNet 3.0."""
        found: dict[str, list[int]] = defaultdict(list)
        for i, name in enumerate(names):
            found[name].append(i)
        return {name: entries for name, entries in found.items() if 1200 * len(entries) >= len(names)}

    def _class(self, i: int, grain: int) -> str:
        """Return the entry's class: field, grand-parent, parent, or what the encoder puts together."""
        return self.class_names[i][grain] if grain < 3 else str(self.meaning.fine[i])

    def _depth_class(self, i: int) -> tuple[str, str, str]:
        """Return the entry's class at three grains: lexicographer file, grand-parent, parent."""
        s = self.synsets[i]
        parent = self.by_key.get(s.parent)
        grand = parent.parent if parent and parent.parent else s.parent
        return s.category, grand or s.category, s.parent or s.category

    # Labels

    def label_maker(self, rng: random.Random, words: int) -> Callable[[], str]:
        """Return a generator of labels that share one form, as the labels of a real task do."""
        form = rng.choice(
            ["snake", "snake", "snake", "dotted", "dotted", "words", "word", "title", "camel", "code", "kebab"]
        )
        stems = rng.sample(self.frequent, 2 if rng.random() < 0.3 else 40)
        joins = {"snake": "_", "dotted": ".", "words": " ", "title": " ", "camel": "", "kebab": "-", "word": " "}

        def make() -> str:
            if form == "code":
                return "".join(
                    rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789") for _ in range(rng.randint(1, 2 + words))
                )
            n = 1 if form == "word" else rng.randint(1, max(1, words))
            parts = [rng.choice(stems if k < n - 1 and rng.random() < 0.5 else self.words) for k in range(n)]
            if form in ("title", "camel"):
                parts = [p.capitalize() for p in parts]
            text = joins[form].join(parts)
            return text[0].upper() + text[1:] if form == "snake" and rng.random() < 0.05 else text

        return make

    def labels(self, rng: random.Random, n: int, words: int) -> list[str]:
        """Return n distinct labels of one form."""
        for _ in range(50):
            make, found = self.label_maker(rng, words), dict[str, None]()
            for _ in range(20 * n):
                found[make()] = None
                if len(found) == n:
                    return list(found)
        return [f"{w}{k}" for k, w in enumerate(rng.sample(self.words, n))]

    # Texts

    def corrupt(self, rng: random.Random, text: str, noise: float) -> str:
        """Drop, replace, move and add words, each with a probability that follows `noise`."""
        out = []
        for w in text.split():
            r = rng.random()
            if r < noise * 0.5:
                continue
            if r < noise * 0.8:
                w = rng.choice(self.synonyms.get(w.lower()) or self.frequent)
            out.append(w)
            if rng.random() < noise * 0.3:
                out.append(rng.choice(self.frequent))
        if rng.random() < noise:
            cut = rng.randrange(len(out) + 1)
            out = out[cut:] + out[:cut]
        return " ".join(out) or text

    def text(self, rng: random.Random, words: int) -> str:
        """Return a definition or an example sentence of at most `words` words."""
        s = rng.choice(self.synsets)
        source = rng.choice(s.examples) if s.examples and rng.random() < 0.4 else s.definition
        parts = source.split()
        start = rng.randrange(max(1, len(parts) - words + 1))
        text = " ".join(parts[start : start + words])
        return text[0].upper() + text[1:] if rng.random() < 0.3 else text

    # Episodes

    def lookup(self, rng: random.Random, lv: Levels) -> Episode:
        """Labelled texts, then the same texts again, corrupted: give the label of the one that resembles."""
        n = rng.randint(2, max(2, round(lv.spread)))
        words = max(1, round(rng.uniform(0.5, 1.0) * lv.lookup))
        texts = [self.text(rng, words) if lv.lookup > 1 else rng.choice(self.frequent) for _ in range(n)]
        labels = self.labels(rng, n, max(1, round(lv.label)))
        name = rng.choice(INPUT_NAMES)
        turns = [Turn(f"{name}: {t}", y, learn=False) for t, y in zip(texts, labels, strict=True)]
        for i in (rng.randrange(n) for _ in range(max(3, n // 2))):
            turns.append(Turn(f"{name}: {self.corrupt(rng, texts[i], rng.uniform(0, lv.noise))}", labels[i]))
        return Episode("lookup", turns, self._instruction(rng))

    def neighbour(self, rng: random.Random, lv: Levels) -> Episode:
        """The most similar entries with the label of their class, best last: give the class of the question."""
        assert self.neighbours is not None
        k = rng.randint(1, max(4, round(1.5 * lv.spread)))
        grain = rng.randrange(4)
        while True:
            q = rng.randrange(len(self.synsets))
            near = [int(i) for i in self.neighbours[q]][: max(k, 8)]
            classes = [self._class(i, grain) for i in near]
            if self._class(q, grain) in classes[:k]:
                break
        chosen = list(reversed(near[:k])) if rng.random() < 0.8 else rng.sample(near[:k], len(near[:k]))
        names = sorted({self._class(i, grain) for i in chosen})
        symbols = dict(zip(names, self.labels(rng, len(names), max(1, round(lv.label))), strict=True))
        name, limit = rng.choice(INPUT_NAMES), rng.choice([12, 20, 40])
        turns, seen = [], set[str]()
        for i in [*chosen, q]:
            c = self._class(i, grain)
            text = " ".join(self.synsets[i].definition.split()[:limit])
            turns.append(Turn(f"{name}: {text}", symbols[c], learn=c in seen, text=i))
            seen.add(c)
        return Episode("neighbour", turns, self._instruction(rng))

    def many(self, rng: random.Random, lv: Levels) -> Episode:
        """Classes of several corrupted texts each, in random order: every later member of a class can be told."""
        classes = rng.randint(2, max(2, round(lv.spread)))
        texts = [self.text(rng, max(2, round(lv.lookup))) for _ in range(classes)]
        labels = self.labels(rng, classes, max(1, round(lv.label)))
        name = rng.choice(INPUT_NAMES)
        order = [i for i in range(classes) for _ in range(rng.randint(1, 4))]
        rng.shuffle(order)
        turns, seen = [], set[int]()
        for i in order[: round(3 * lv.spread)]:
            turns.append(
                Turn(f"{name}: {self.corrupt(rng, texts[i], lv.noise * rng.random())}", labels[i], learn=i in seen)
            )
            seen.add(i)
        return Episode("many", turns, self._instruction(rng))

    def topics(self, rng: random.Random, lv: Levels) -> Episode:
        """Texts of a few fields, each field under an invented label: what the texts are about tells, no shared word.

        This is few-shot and many-shot classification as users have it; the number of demonstrations is drawn evenly on
        a log scale, so that long contexts are as common as short ones.
        """
        grouped = self.by_field if rng.random() < 0.5 else self.by_kind
        classes = rng.sample(list(grouped), min(len(grouped), 2 + int(rng.expovariate(1 / 4))))
        symbols = self.labels(rng, len(classes), max(1, round(lv.label)))
        if rng.random() < 0.2:
            symbols = classes  # a real task's labels say what they mean
        name, limit = rng.choice(INPUT_NAMES), rng.choice([8, 12, 20, 30])
        drawn = [rng.randrange(len(classes)) for _ in range(self._demonstrations(rng, 4))]
        if rng.random() < 0.25:
            half = 3 * len(drawn) // 4
            drawn = sorted(drawn[:half]) + drawn[half:]  # sorted by label, as data files often are
        turns, seen = [], set[int]()
        for c in drawn:
            i = rng.choice(grouped[classes[c]])
            text = " ".join(self.synsets[i].definition.split()[:limit])
            turns.append(Turn(f"{name}: {text}", symbols[c], learn=c in seen, text=i))
            seen.add(c)
        return Episode("topics", turns, self._instruction(rng))

    def clusters(self, rng: random.Random, lv: Levels) -> Episode:
        """Texts of up to 80 classes that a sentence encoder puts together, far from each other or all of one subject.

        The classes of a real task: told by meaning and not by a word, many, and often much alike; definitions beside
        sentences, some wrapped in the phrases of a question.
        """
        m, n = self.meaning, self._demonstrations(rng, 4)
        subject = rng.choice(list(m.within.values())) if rng.random() < 0.4 else m.usable
        wanted = round(2 * math.exp(rng.random() * math.log(40)))
        classes = rng.sample(subject, min(wanted, len(subject), max(2, n // 2)))
        symbols = self.labels(rng, len(classes), max(1, round(lv.label)))
        name, limit = rng.choice(INPUT_NAMES), rng.choice([8, 12, 20, 30])
        wrapped = 0.6 if rng.random() < 0.5 else 0.0
        drawn = [rng.randrange(len(classes)) for _ in range(n)]
        if rng.random() < 0.25:
            half = 3 * n // 4
            drawn = sorted(drawn[:half]) + drawn[half:]
        turns, seen = [], set[int]()
        for c in drawn:
            i = rng.choice(m.members[classes[c]])
            text = " ".join(self.texts[i].split()[:limit])
            if rng.random() < wrapped:
                text = rng.choice(WRAPPERS).format(text)
            turns.append(Turn(f"{name}: {text}", symbols[c], learn=c in seen, text=i))
            seen.add(c)
        return Episode("clusters", turns, self._instruction(rng))

    def scattered(self, rng: random.Random, lv: Levels) -> Episode:
        """Many unlike texts, each under its own label, and now and then one that resembles an earlier text.

        Many-shot with more labels than a model can learn the sense of: what resembles the question stands anywhere in
        the context, behind any number of texts that do not.
        """
        assert self.neighbours is not None
        n = self._demonstrations(rng, 6)
        name, limit = rng.choice(INPUT_NAMES), rng.choice([8, 12, 20, 30])
        groups: list[list[int]] = []
        while sum(map(len, groups)) < n:
            i = rng.randrange(len(self.synsets))
            near = [i] if rng.random() < 0.3 else [i, *(int(j) for j in self.neighbours[i][: rng.randint(0, 3)])]
            if len(near) == 1:
                near = near * rng.randint(1, 2)
            groups.append(near)
        symbols = self.labels(rng, len(groups), max(1, round(lv.label)))
        order = [(g, i) for g, group in enumerate(groups) for i in group]
        rng.shuffle(order)
        noise, turns, seen = lv.noise * rng.random(), list[Turn](), set[int]()
        for g, i in order:
            text = self.corrupt(rng, " ".join(self.synsets[i].definition.split()[:limit]), noise * rng.random())
            turns.append(Turn(f"{name}: {text}", symbols[g], learn=g in seen, text=i))
            seen.add(g)
        return Episode("scattered", turns, self._instruction(rng))

    def _demonstrations(self, rng: random.Random, fewest: int) -> int:
        """Draw a number of turns, evenly on a log scale up to what a context holds."""
        return round(fewest * math.exp(rng.random() * math.log(160 / fewest)))

    def describe(self, rng: random.Random, lv: Levels) -> Episode:
        """Named passages and a corrupted definition: give the name of the thing described."""
        turns, style = (
            [],
            rng.choice(
                [
                    "[{n}] {name}: {text}",
                    "[{n}] {name}: {text}",
                    "[{n}] {name} | {text}",
                    "{name}: {text}",
                    "[{n}] {name} {text}",
                ]
            ),
        )
        questions = rng.choice(["question", "question", "description", "query"])
        make = self.label_maker(rng, max(1, round(lv.label)))
        invented, shown = rng.random() < 0.7, rng.randint(0, 2)
        for _ in range(1 + shown):
            near = self._passage_group(rng, max(1, round(rng.uniform(0.5, 1) * lv.passages)))
            names = [make() if invented else self.synsets[i].words[0] for i in near]
            target = rng.randrange(len(near))
            lines = []
            for n, (i, name) in enumerate(zip(near, names, strict=True), 1):
                body = " ".join(self.synsets[i].definition.split()[:40])
                sign = f"({', '.join(rng.sample(self.frequent, rng.randint(0, 3)))}) " if rng.random() < 0.3 else ""
                lines.append(style.format(n=n, name=name, text=sign + body))
            asked = self.corrupt(
                rng, " ".join(self.synsets[near[target]].definition.split()[:25]), lv.noise * rng.random()
            )
            asked = rng.choice(["{}", "{}", "What {}?", "Which one: {}", "what is {}?"]).format(asked)
            turns.append(Turn("passages: " + "\n".join(lines) + f"\n{questions}: {asked}", names[target]))
        return Episode("describe", turns, self._instruction(rng))

    def extract(self, rng: random.Random, lv: Levels) -> Episode:
        """Passages and a sentence of one with a gap: give the words that fill the gap."""
        turns = []
        for _ in range(1 + rng.randint(0, 2)):
            near = self._passage_group(rng, max(1, round(rng.uniform(0.5, 1) * lv.passages)))
            bodies = [
                f"{s.words[0]} is {s.definition}. {'. '.join(s.examples)}".strip()
                for s in (self.synsets[i] for i in near)
            ]
            target = rng.randrange(len(near))
            words = bodies[target].split()
            size = rng.randint(1, max(1, min(4, round(lv.label), len(words) // 3)))
            start = rng.randrange(len(words) - size + 1)
            answer = " ".join(words[start : start + size]).strip(".,;()")
            gap = rng.choice(["what", "what", "which", "who", "___"])
            left = words[max(0, start - rng.randint(3, 8)) : start]
            right = words[start + size : start + size + rng.randint(3, 8)]
            asked = " ".join(
                [
                    *self.corrupt(rng, " ".join(left), lv.noise / 2).split(),
                    gap,
                    *self.corrupt(rng, " ".join(right), lv.noise / 2).split(),
                ]
            )
            passages = "\n".join(f"[{n}] {b}" for n, b in enumerate(bodies, 1))
            if answer:
                turns.append(Turn(f"passages: {passages}\nquestion: {asked}?", answer))
        return Episode("extract", turns or [Turn("text: yes", "yes")], self._instruction(rng))

    def recall(self, rng: random.Random, lv: Levels) -> Episode:
        """Definitions and their field or their kind: nothing but the weights can tell.

        This is what makes a text's meaning readable at the place where the answer begins; a model trained on look-up
        alone compares texts, and fine-tuning finds no features to build on. Asking for the word itself, or for rare
        kinds, taught nothing in 5 M tokens.
        """
        grain, name, turns = rng.randrange(2), rng.choice(INPUT_NAMES), []
        for _ in range(rng.choice([1, 1, 2, 4, 8, 16])):
            i = rng.randrange(len(self.synsets))
            text = self.corrupt(rng, " ".join(self.synsets[i].definition.split()[:30]), lv.noise * rng.random() / 2)
            turns.append(Turn(f"{name}: {text}", self.kinds[i] if grain else self.synsets[i].category, text=i))
        return Episode("recall", turns, RECALL[grain])

    def _passage_group(self, rng: random.Random, n: int) -> list[int]:
        """Return n entries, similar ones as often as not: what a retriever brings is alike."""
        i = rng.randrange(len(self.synsets))
        if self.neighbours is not None and rng.random() < 0.6:
            group = [i, *(int(j) for j in self.neighbours[i][: n - 1])]
        else:
            group = [i, *rng.sample(range(len(self.synsets)), n - 1)]
        rng.shuffle(group)
        return group

    def _instruction(self, rng: random.Random) -> str:
        return rng.choice(INSTRUCTIONS) if rng.random() < 0.15 else ""

    def tokenizer_text(self, seed: int = 0) -> Iterator[str]:
        """Yield the text on which the tokenizer is trained: the glosses, and labels of every form."""
        rng = random.Random(seed)
        for s in self.synsets:
            yield f" {s.words[0]}: {s.definition}"
            yield from (" " + e for e in s.examples)
        for _ in range(40_000):
            n = rng.randint(2, 4)
            yield " " + rng.choice(["_", "_", "."]).join(rng.choice(self.frequent) for _ in range(n))
        for name in INPUT_NAMES * 200:
            yield f" {name}: passages:"
