"""The model of the tests: a Llama of 4.7 million parameters that learns from its prompt and from gradient steps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crossover.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from crossover.models.local import LocalEngine

FOLDER = Path(__file__).parent / "tiny_model"
NAME = f"local:{FOLDER}"
SPEC = ModelSpec(NAME, prompt_format="plain", decode="free")


def model(**settings: object) -> str:
    """Return the model with further settings, as an experiment file names it."""
    return json.dumps({"name": NAME, "prompt_format": "plain", "decode": "free", **settings})


def logits(engine: "LocalEngine", ids: Sequence[int], adapter: str = "") -> "torch.Tensor":
    """Return the float32 logits after a prompt, shape (vocabulary,)."""
    # Not with this file: conftest.py sets the environment first.
    import torch

    with engine._lock, torch.inference_mode():
        engine.use(adapter)
        out: torch.Tensor = engine.model(torch.tensor([list(ids)], device=engine.model.device), logits_to_keep=1).logits
        return out[0, -1].float().cpu()
