"""Check a fitted program against the rules of a fair comparison."""

from collections.abc import Sequence

import dspy

from crossover.models.load import LoadedModel
from crossover.models.prompt import first_messages
from crossover.programs.demos import question_key
from crossover.programs.task import Fitted


def audit(fitted: Fitted, test: Sequence[dspy.Example], model: LoadedModel) -> list[str]:
    """Return a sentence for each broken rule, an empty list when all hold.

    Zero-shot shows no demonstration; no demonstration asks a test question; training changes the logits.
    """
    failures = []
    shown = demonstrations(fitted.program)
    asked = {question_key(e.inputs().toDict()) for e in test}
    leaked = [d for d in shown if question_key(question_of(d, test)) in asked]
    if leaked:
        failures.append(f"{len(leaked)} demonstrations are test questions")
    if fitted.facts.zero_shot and test:
        with dspy.context(lm=fitted.lm, adapter=model.prompt_format):
            answers = [m for m in first_messages(fitted.program, test[0]) if m["role"] == "assistant"]
        if shown or answers:
            failures.append("zero-shot shows demonstrations")
    change = fitted.facts.logit_change
    # Not `<=`: a change that is not a number is no change either.
    if change is not None and not change > 1e-6:
        failures.append("training did not change what the model makes of a prompt")
    return failures


def demonstrations(program: dspy.Module) -> list[dict[str, object]]:
    """Return every demonstration that the program can show, also those it chooses for each question."""
    demos = [dict(d) for _, p in program.named_predictors() for d in p.demos]
    for _, module in program.named_sub_modules():
        if "pool" in vars(module):
            demos += [e.toDict() for e in module.pool]
    return demos


def question_of(demo: dict[str, object], test: Sequence[dspy.Example]) -> dict[str, object]:
    """Return the inputs of a demonstration, by the names that the test examples use."""
    return {k: demo.get(k) for k in test[0].inputs()}
