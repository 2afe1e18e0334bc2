"""Where models of this process run."""

import torch


def device_name() -> str:
    """Return torch's name of the device: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def accelerator() -> str:
    """Return the name of the device that local models run on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return "Apple GPU (mps)" if torch.backends.mps.is_available() else "none; models run on the processor"
