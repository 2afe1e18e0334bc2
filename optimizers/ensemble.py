"""Several programs with different demonstrations vote on the answer (DSPy's majority)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from crossover.models.usage import Usage
from crossover.programs.demos import last_output, with_demos
from crossover.programs.splits import fold
from crossover.programs.task import Budget, FitFacts, Fitted, Metric, Workload


class Vote(dspy.Module):  # type: ignore[misc]  # dspy.Module is untyped
    """Ask every program and return the most frequent answer; of equally frequent ones the first."""

    def __init__(self, programs: Sequence[dspy.Module]) -> None:
        """Hold the programs as sub-modules, so that they are saved with the vote."""
        super().__init__()
        self.programs = list(programs)

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
        # DSPy's own normalization drops articles, and with them the label "a".
        return dspy.majority(answers, normalize=fold, field=last_output(self.programs[0]))


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
        vote = Vote([with_demos(program, chosen) for chosen in sets])
        facts = FitFacts(labels_used=len({id(e) for chosen in sets for e in chosen}))
        notes = {"members": self.members, "demos": self.demos}
        return Fitted(vote, lm, Usage(), facts=facts, notes=notes)
