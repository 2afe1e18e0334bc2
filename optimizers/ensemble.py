"""Several programs with different demonstrations vote on the answer."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from crossover.models.answer_types import labels_of
from crossover.models.usage import Usage
from crossover.programs.demos import answer_fields, with_demos
from crossover.programs.fields import text_of
from crossover.programs.metrics import normalise
from crossover.programs.task import Budget, FitFacts, Fitted, Metric, Workload


class Vote(dspy.Module):  # type: ignore[misc]  # dspy.Module is untyped
    """Ask every program and return the most frequent answer; of equally frequent ones the first.

    An answer of several fields has the votes of all its fields: it is the one that agrees most with the others.
    """

    def __init__(self, programs: Sequence[dspy.Module], outputs: Sequence[str]) -> None:
        """Hold the programs as sub-modules, so that they are saved with the vote; `outputs` are voted on."""
        super().__init__()
        self.programs, self.outputs = list(programs), tuple(outputs)
        fields = {n: f for p in self.programs[0].predictors() for n, f in p.signature.output_fields.items()}
        self.labelled = frozenset(n for n in self.outputs if n in fields and labels_of(fields[n]))
        """Those of the outputs that hold one of some labels."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Answer one question; an answer that cannot be parsed has no vote.

        Raises:
            AdapterParseError: no answer can be parsed.
        """
        answers, unparsed = [], None
        for program in self.programs:
            try:
                answers.append(program(**inputs))
            except AdapterParseError as e:
                unparsed = e
        if not answers and unparsed is not None:
            raise unparsed
        ballots = [[(name, self._same(name, a.get(name))) for name in self.outputs] for a in answers]
        votes = Counter(value for ballot in ballots for value in ballot)
        best = max(range(len(answers)), key=lambda n: sum(votes[value] for value in ballots[n]))
        return answers[best]

    def _same(self, name: str, value: Any) -> str:
        """Return a text that is equal for values that mean the same, as metrics compare them."""
        if isinstance(value, list):
            return json.dumps(sorted(normalise(text_of(v)) for v in value))
        # Punctuation tells labels such as C and C++ apart.
        free = isinstance(value, str) and name not in self.labelled
        return normalise(value) if free else text_of(value).strip().casefold()


@dataclass(frozen=True)
class Ensemble:
    """Members that differ in their demonstrations alone; a question costs one call for each."""

    members: int = 5
    """Programs that vote."""
    demos: int = 4
    """Demonstrations of each member."""

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        return Workload(demos=self.demos, calls=self.members)

    def fit(
        self,
        program: dspy.Module,
        *,
        train: Sequence[dspy.Example],
        val: Sequence[dspy.Example],
        metric: Metric,
        lm: dspy.LM,
        seed: int,
        budget: Budget,
    ) -> Fitted:
        """Draw each member's demonstrations from train by seed."""
        draw = random.Random(seed)
        sets = [draw.sample(list(train), min(self.demos, len(train))) for _ in range(self.members)]
        vote = Vote([with_demos(program, chosen) for chosen in sets], answer_fields(program, train))
        facts = FitFacts(labels_used=len({id(e) for chosen in sets for e in chosen}))
        notes = {"members": self.members, "demos": self.demos}
        return Fitted(vote, lm, Usage(), facts=facts, notes=notes)
