"""The model of the tests: a Llama of 4.7 million parameters that learns from its prompt and from gradient steps."""

import json
from pathlib import Path

from crossover.models.spec import ModelSpec

FOLDER = Path(__file__).parent / "tiny_model"
NAME = f"local:{FOLDER}"
SPEC = ModelSpec(NAME, prompt_format="plain", decode="free")


def model(**settings: object) -> str:
    """Return the model with further settings, as an experiment file names it."""
    return json.dumps({"name": NAME, "prompt_format": "plain", "decode": "free", **settings})
