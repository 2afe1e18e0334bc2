"""From an example to the prompt that a model reads: its messages, their length, and the room in the context."""

from typing import Any

import dspy
from dspy import lm15

from crossover.models.engine import innermost


def first_messages(program: dspy.Module, example: dspy.Example, predictor: Any = None) -> list[dict[str, str]]:
    """Return the messages of the program's first predictor, rendered in the calling context's prompt format.

    This is the one way from an example to text, for counting, for training and for the audits; the predictor
    itself goes the same way when it serves.
    """
    predict = predictor or program.predictors()[0]
    prompt_format = dspy.settings.adapter or dspy.ChatAdapter()
    inputs = {k: v for k, v in example.inputs().items() if k in predict.signature.input_fields}
    messages: list[dict[str, str]] = prompt_format.format(predict.signature, predict.demos, inputs)
    return messages


def room(lm: dspy.LM) -> int:
    """Return the tokens that a prompt may have, 0 where the context is unknown."""
    engine = innermost(lm)
    context = 0 if isinstance(engine, str) else int(engine.context)
    return max(0, context - int(lm.kwargs.get("max_tokens") or 64))


def prompt_tokens(program: dspy.Module, example: dspy.Example, lm: dspy.LM) -> int:
    """Return the length of the prompt in tokens: exact on a local model, by LiteLLM's tokenizer on any other."""
    return int(innermost(lm).count_tokens(first_messages(program, example)))


def engine_of(lm: dspy.LM) -> Any:
    """Return the engine of a model whose weights are at hand, or None when the model runs elsewhere."""
    engine = innermost(lm)
    return None if isinstance(engine, str) or not engine.local else engine


def messages_of(request: lm15.Request) -> list[dict[str, str]]:
    """Return the messages of a request as plain text, the system's first."""
    system = request.system if isinstance(request.system, str) else "".join(str(p.text) for p in request.system or ())
    messages = [{"role": "system", "content": system}] if system else []
    return messages + [{"role": str(m.role), "content": str(m.text)} for m in request.messages]
