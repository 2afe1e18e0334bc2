"""A method as the experiment file names it, and the answer to what kind of method it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crossover.eval.experiment.catalog import MethodKind, option_defaults, traits
from crossover.models.spec import ModelSpec


@dataclass(frozen=True)
class MethodSpec:
    """A method with its options, as the experiment file gives them."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> tuple["MethodSpec", ...]:
        """Return the methods of a chain in their order; any other method is its own only step."""
        return tuple(MethodSpec(**s) for s in self.options["steps"]) if self.name == "chain" else (self,)

    @property
    def label(self) -> str:
        """Return the short name for tables: `many_shot demos=64`, `gepa > sft`."""
        if self.name == "chain":
            return " > ".join(step.label for step in self.steps)
        return " ".join([self.name, *(f"{k}={v}" for k, v in sorted(self.options.items()))])

    @property
    def base_name(self) -> str:
        """Return the name without options, which all variants of the method share: `many_shot`, `gepa > sft`."""
        return " > ".join(step.name for step in self.steps)

    @property
    def changed_options(self) -> dict[str, Any]:
        """Return the options that differ from the method's defaults."""
        defaults = option_defaults(self.name)
        return {k: v for k, v in self.options.items() if k not in defaults or v != defaults[k]}

    @property
    def kind(self) -> MethodKind:
        """Return whether prompts are adapted, or weights, or both by the steps of a chain."""
        kinds = {traits(step.name).kind for step in self.steps}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def trains(self) -> bool:
        """Return whether weights are trained, and so hosted: by the method, or by a step of the chain."""
        return self.kind != "in_context"

    @property
    def learns(self) -> bool:
        """Return whether what is fitted depends on train; for a chain, whether any step does."""
        return any(traits(step.name).learns for step in self.steps)

    @property
    def searches(self) -> bool:
        """Return whether prompts are searched, with a budget and a teacher; for a chain, whether any step does."""
        return any(traits(step.name).searches for step in self.steps)

    def left_out_on(self, model: ModelSpec) -> str:
        """Return why the method cannot be measured on a model, empty where it can."""
        if self.trains and not model.runs_here:
            return "runs elsewhere, and its weights cannot be trained here"
        adapters = {step.options.get("adapter") for step in self.steps if step.trains}
        heads, several = any(step.name == "head" for step in self.steps), sum(s.trains for s in self.steps) > 1
        if model.by_vllm and (heads or several or adapters & {"dora", "none"}):
            return "is served by vLLM, which loads LoRA adapters, but no heads, DoRA or full weights"
        return ""
