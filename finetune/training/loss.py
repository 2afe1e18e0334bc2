"""Compute the completion loss on a CPU without passing the prompt's tokens through the vocabulary.

TRL 1.16 drops positions without a label before the language-model head only where Triton runs; on a CPU a prompt of
200 tokens with an answer of 10 pays for 210 (measured: 60 % of a training step with 4.7 M parameters). The loss is the
same.
"""

import inspect
from typing import Any

import torch
from trl import SFTTrainer


class CompletionLossTrainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped
    """SFTTrainer whose head reads the columns of a batch that carry a label, and no others."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean negative log-likelihood of the labelled tokens; `Trainer` counts them over a whole step."""
        labels = inputs["labels"][:, 1:]
        columns = (labels != -100).any(0).nonzero().squeeze(1)
        rest = {k: v for k, v in inputs.items() if k != "labels"}
        outputs = model(**rest, use_cache=False, logits_to_keep=columns)
        total = torch.nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1).float(), labels[:, columns].flatten(), ignore_index=-100, reduction="sum"
        )
        loss = total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The tokens of all processes were counted, and torch takes the mean of the processes' gradients.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def trainer_for(model: Any) -> type[SFTTrainer]:
    """Return TRL's own trainer on CUDA, or for a model that cannot compute a part of the logits; else ours."""
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    return SFTTrainer if torch.cuda.is_available() or not keeps else CompletionLossTrainer
