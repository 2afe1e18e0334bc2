"""The completion loss of finetune/loss.py is TRL's."""

from pathlib import Path

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaForCausalLM
from trl import SFTTrainer

from crossover.finetune.training.loss import CompletionLossTrainer
from crossover.finetune.training.options import TrainingOptions
from crossover.finetune.training.render import TrainingText
from crossover.finetune.training.settings import sft_config
from crossover.finetune.training.train import quiet

TEXT = "a card that was lost on the way to the bank and never came back"
WORDS = TEXT.split()


def trained(trainer_class: type[SFTTrainer], folder: Path) -> tuple[list[float], torch.Tensor]:
    """Train three steps and return the losses and the embeddings after them."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"text: {' '.join(WORDS[: n % 13 + 1])}"}],
            "completion": [{"role": "assistant", "content": " ".join(WORDS[n % 5 : n % 5 + n % 3 + 1])}],
        }
        for n in range(24)
    ]
    text = TrainingText(rows, [64] * len(rows), 0, "")
    options = TrainingOptions(adapter="none", epochs=1, batch_size=8, bf16=False, lr=1e-3)
    with quiet():
        trainer = trainer_class(
            model=LlamaForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float32),
            args=sft_config(options, text, folder, 0),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(tiny.FOLDER),
        )
        trainer.train()
    losses = [float(h["loss"]) for h in trainer.state.log_history if "loss" in h]
    return losses, trainer.model.get_input_embeddings().weight.detach().cpu()


def test_the_loss_and_its_steps_are_those_of_trl(tmp_path: Path) -> None:
    losses, weights = trained(CompletionLossTrainer, tmp_path / "ours")
    expected, told = trained(SFTTrainer, tmp_path / "theirs")
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == 3
    # AdamW's first steps have the size of the rate whatever the gradient's, so rounding shows where it is near zero.
    assert (weights - told).abs().mean() < 1e-5
