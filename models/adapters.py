"""Attach LoRA adapters to one loaded base by PEFT, and switch between them; none is merged into it."""

import warnings
from pathlib import Path
from typing import Any


def attach(model: Any, folder: Path, name: str) -> Any:
    """Return the model with the adapter of `folder` attached as `name`, unless it has one of that name."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT still reads a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        elif name not in model.peft_config:
            model.load_adapter(str(folder), adapter_name=name)
        return model.eval()


def switch(model: Any, adapter: str) -> None:
    """Activate an adapter, or none for an empty name.

    PEFT's `disable_adapter` looks at every parameter twice: 4 ms on a model of 5 M parameters, which requests to the
    base would pay and those to an adapter would not.

    Raises:
        ValueError: the adapter is not on this model.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        if adapter:
            raise ValueError(f"adapter {adapter} is not loaded on this model")
    elif not adapter:
        model.base_model.disable_adapter_layers()
    else:
        model.base_model.enable_adapter_layers()
        model.set_adapter(adapter, inference_mode=True)
