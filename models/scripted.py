"""A model that answers by script, with the tokenizer of a real one and none of its weights, for dry runs."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15
from pydantic.fields import FieldInfo

from crossover.models.answer_types import json_schema, labels_of
from crossover.models.errors import UserError
from crossover.models.prompt import messages_of

EXAMPLES: dict[str, Any] = {"boolean": True, "integer": 1, "number": 1.0, "array": [], "object": {}, "null": None}
"""An answer of each type of JSON but text."""


class ScriptedEngine:
    """Answer every request with the same values of the fields that DSPy's chat format asks for."""

    local, inner = True, None
    supported_params, supports_response_schema = frozenset[str](), False
    stop_at_line = False

    def __init__(self, values: Mapping[str, Any], tokenizer: Any = None, context: int = 0) -> None:
        """Answer with `values` by the names of their fields; without a tokenizer a token is a word."""
        self.values, self.tokenizer, self.context = values, tokenizer, context

    def __deepcopy__(self, memo: dict[int, Any]) -> "ScriptedEngine":
        """Return itself, as every engine does."""
        return self

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the token ids of the prompt, up to the start of the answer."""
        from crossover.models.text import safe_messages

        safe = safe_messages(self.tokenizer, messages)
        ids = self.tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=True, return_dict=True)
        return list(ids["input_ids"])

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        """Return the length of the prompt in tokens."""
        return (
            sum(len(m["content"].split()) for m in messages) if self.tokenizer is None else len(self.encode(messages))
        )

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request."""
        asked = messages_of(request)[-1]["content"].rpartition("Respond with")[2]
        names = [n for n in re.findall(r"\[\[ ## (\w+) ## \]\]", asked) if n != "completed"]
        values = {n: self.values.get(n, "text") for n in names}
        shown = {n: v if isinstance(v, str) else json.dumps(v, default=str) for n, v in values.items()}
        text = "\n\n".join(f"[[ ## {n} ## ]]\n{v}" for n, v in shown.items()) + "\n\n[[ ## completed ## ]]"
        return answered(request, text)


def answered(request: lm15.Request, text: str) -> lm15.Response:
    """Return a whole answer of that text, counted as a token read and a token written."""
    usage, message = lm15.Usage(input_tokens=1, output_tokens=1, total_tokens=2), lm15.Message.assistant(text)
    return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)


def scripted_lm(values: Mapping[str, Any], tokenizer: Any = None, context: int = 0) -> dspy.LM:
    """Return a DSPy model that answers with these values by the names of their fields."""
    return dspy.LM("scripted", engine=ScriptedEngine(values, tokenizer, context), cache=False, max_tokens=64)


def example_value(field: FieldInfo) -> Any:
    """Return a value that an output field may take; of several labels the last, with which DSPy's ReAct ends."""
    if labels := labels_of(field):
        return labels[-1]
    return EXAMPLES.get(json_schema(field).get("type", ""), "text")


def load_tokenizer(source: Path | str, *, trust_remote_code: bool) -> tuple[Any, int]:
    """Return a model's tokenizer and the tokens of its context, without its weights; `source` may be a hub id.

    Raises:
        UserError: transformers cannot read configuration or tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from crossover.models.text import FALLBACK_TEMPLATE

    transformers_logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        context = int(config.get_text_config().max_position_embeddings)
    # Damaged files raise errors of many kinds.
    except Exception as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"its tokenizer cannot be loaded: {type(e).__name__}: {reason}; save it again") from e
    if tokenizer.chat_template is None:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    return tokenizer, context
