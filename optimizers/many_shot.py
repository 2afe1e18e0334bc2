"""As many labelled examples as fit the model's context, or as many as asked for."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.optimizers.common.context import fits_context, leading_that_fit
from crossover.optimizers.common.nearest import NearestDemos
from crossover.programs.demos import answer_fields, drawn, with_demos
from crossover.programs.task import Budget, FitFacts, Fitted, Metric, Workload

ORDERS = ("shuffled", "label_sorted", "similarity")


@dataclass(frozen=True)
class ManyShot:
    """A fixed block of demonstrations (protocol: arXiv 2405.00200, random demonstrations shared by all questions)."""

    demos: int = 0
    """Demonstrations to show; 0 for as many as fit the context."""
    balanced: bool = True
    """Draw every label in turn, if the output is a label; else draw at random."""
    order: str = "shuffled"
    """Order of the block: `shuffled`, `label_sorted` (known to hurt long prompts), or `similarity` (nearest last)."""

    def __post_init__(self) -> None:
        """Refuse an order that does not exist, before anything is spent.

        Raises:
            UserError: the order is not one of ORDERS.
        """
        if self.order not in ORDERS:
            raise UserError(f"many_shot order {self.order!r} is not one of {', '.join(ORDERS)}; set `order: shuffled`")

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        return Workload(demos=self.demos or train)

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
        """Show as many examples as fit beside the longest question of val or train."""
        order = self._order(program, train, seed)
        wanted = order[: self.demos or len(order)]
        count = leading_that_fit(program, wanted, [*val, *train], lm)
        block = wanted[:count]
        adapted = with_demos(program, self._sorted(program, block))
        if self.order == "similarity":
            adapted = NearestDemos(with_demos(program, []), block, count, fits_context(lm))
        fitted = Fitted(adapted, lm, Usage(), facts=FitFacts(labels_used=count), notes={"demos": count})
        if self.demos and count < min(self.demos, len(order)):
            fitted.warnings.append(f"{count} of {self.demos} demonstrations fit the model's context")
        return fitted

    def _sorted(self, program: dspy.Module, block: list[dspy.Example]) -> list[dspy.Example]:
        """Return the block sorted by label for `label_sorted`, else as it is."""
        if self.order != "label_sorted":
            return block
        output = _answer_field(program, block)
        return sorted(block, key=lambda e: str(e.get(output)))

    def _order(self, program: dspy.Module, train: Sequence[dspy.Example], seed: int) -> list[dspy.Example]:
        """Return train shuffled by seed; balanced: one of each label, then the second of each, and so on."""
        shuffled, output = drawn(train, seed), _answer_field(program, train)
        if not self.balanced or any(output not in e for e in shuffled):
            return shuffled
        seen: dict[str, int] = defaultdict(int)
        rounds = []
        for e in shuffled:
            label = str(e[output])
            rounds.append(seen[label])
            seen[label] += 1
        return [e for _, e in sorted(zip(rounds, shuffled, strict=True), key=lambda pair: pair[0])]


def _answer_field(program: dspy.Module, examples: Sequence[dspy.Example]) -> str:
    """Return the last output field that the examples hold an answer to, or an empty string."""
    return (answer_fields(program, examples) or [""])[-1]
