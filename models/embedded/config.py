"""Shape of the embedded model and of its training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Shape of the model and of its training."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 512
    rotary_base: float = 1e4
    vocabulary: int = 8192
    context: int = 4096
    read_by: int = 2
    """Layers by whose end the token before an answer is asked to tell what the text before it means."""
    batch_tokens: int = 2048
    """Tokens of one step while copying is learned, when the number of steps counts; twice as many later."""
    longest: int = 4096
    """Longest episode in tokens."""
    muon_lr: float = 0.02
    adam_lr: float = 0.01
    decay: float = 0.05
    """Weight decay of the matrices. Without it the noise of small batches piles up in Muon's full-size steps: a run
    of 11 M tokens ended with weights ten times too large and never learned to copy."""


CONFIGS = {
    "small": Config(),
    "large": Config(width=384, layers=7, heads=12, feed_forward=1024, batch_tokens=16384),
}
