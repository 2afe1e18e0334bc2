"""How a program's prompt looks to a model: the messages, their token ids, and the room that is left."""

from typing import Any

import dspy


def first_messages(program: dspy.Module, example: dspy.Example, predictor: Any = None) -> list[dict[str, str]]:
    """Return the messages of the program's first predictor, rendered by the calling context's DSPy adapter.

    This is the one way from an example to text, for counting, for training and for the audits; the predictor
    itself goes the same way when it serves.
    """
    predict = predictor or program.predictors()[0]
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    inputs = {k: v for k, v in example.inputs().items() if k in predict.signature.input_fields}
    messages: list[dict[str, str]] = adapter.format(predict.signature, predict.demos, inputs)
    return messages


def room(lm: dspy.LM) -> int:
    """Return the tokens that a prompt may have on a local model, 0 where the context is unknown."""
    engine = engine_of(lm)
    return 0 if engine is None else int(engine.context) - int(lm.kwargs.get("max_tokens") or 64)


def prompt_tokens(program: dspy.Module, example: dspy.Example, lm: dspy.LM) -> int:
    """Return the length of the prompt in tokens of a local model."""
    return len(engine_of(lm).encode(first_messages(program, example)))


def engine_of(lm: dspy.LM) -> Any:
    """Return the local engine of a model, or None when it runs elsewhere."""
    engine = lm.engine
    return None if isinstance(engine, str) else engine
