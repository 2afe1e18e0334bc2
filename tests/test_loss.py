"""The completion loss of finetune/training/loss.py is TRL's, joined rows or not."""

from pathlib import Path

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from trl import SFTTrainer

from crossover.finetune.training.loss import (
    LABELS,
    NO_LABEL,
    TOKENS,
    CompletionLossTrainer,
    join,
    joined_loss,
    padded_loss,
    same_loss,
)
from crossover.finetune.training.options import TrainingOptions
from crossover.finetune.training.render import TrainingText
from crossover.finetune.training.settings import sft_config
from crossover.finetune.training.train import quiet

TEXT = "a card that was lost on the way to the bank and never came back"
WORDS = TEXT.split()


def trained(trainer_class: type[SFTTrainer], folder: Path) -> tuple[list[float], SFTTrainer]:
    """Train three steps and return the losses and the trainer."""
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
    return losses, trainer


def batch(shared: int, own: tuple[int, ...], *, labels: int = 2) -> dict[str, torch.Tensor]:
    """Return a batch of rows that begin alike and end with so many labels."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randint(5, 500, (shared,), generator=draw)
    rows = [torch.cat([start, torch.randint(5, 500, (n,), generator=draw)]) for n in own]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=2)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    expected = torch.full_like(ids, -100)
    for n, row in enumerate(rows):
        expected[n, len(row) - labels : len(row)] = row[-labels:]
    return {"input_ids": ids, "attention_mask": mask, "labels": expected}


def test_the_loss_and_its_steps_are_those_of_trl(tmp_path: Path) -> None:
    losses, ours = trained(CompletionLossTrainer, tmp_path / "ours")
    expected, theirs = trained(SFTTrainer, tmp_path / "theirs")
    assert ours.joins
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == 3
    # AdamW's first steps have the size of the rate whatever the gradient's, so rounding shows where it is near zero.
    weights, told = (t.model.get_input_embeddings().weight.detach().cpu() for t in (ours, theirs))
    assert (weights - told).abs().mean() < 1e-5


def test_losses_are_compared_in_float32_whatever_training_computes_in() -> None:
    """Bfloat16's rounding passed for another loss: machines that have it joined no rows, and took eight times as long
    where instructions are long.
    """
    model = LlamaForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float32)
    # As accelerate does: whoever calls the model computes in bfloat16, in an outer context and in the model's own.
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    computed = set[torch.dtype]()
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, __, out: computed.add(out.dtype))
    given = batch(40, (6, 3, 11, 4))
    joined = join(given, 0.0)
    assert joined is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert same_loss(model, given, joined)
        assert computed == {torch.float32}
        padded_loss(model, given)
        assert computed == {torch.float32, torch.bfloat16}


def test_joined_rows_have_the_loss_and_the_gradients_of_padded_ones() -> None:
    model = LlamaForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float32)
    given = batch(40, (6, 3, 11, 4))
    joined = join(given, 0.0)
    assert joined is not None
    assert joined.inputs["input_ids"].shape == (1, 64)
    found = []
    for loss, _ in (padded_loss(model, given), joined_loss(model, joined)):
        model.zero_grad()
        loss.backward()
        found.append((float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (apart, expected), (together, gradients) = found
    assert together == pytest.approx(apart, rel=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        assert (gradient - other).norm() <= 1e-4 * other.norm() + 1e-7


def test_rows_are_joined_where_that_saves_work_and_never_beyond_the_first_label() -> None:
    assert join(batch(0, (6, 7)), 0.0) is None
    assert join(batch(8, (6,)), 0.0) is None
    # All of the row is alike but its last two tokens, which are labelled: the one before them predicts the first.
    joined = join(batch(10, (2, 2)), 0.0)
    assert joined is not None
    assert joined.inputs["position_ids"][0, :15].tolist() == [*range(9), 9, 10, 11, 9, 10, 11]
    assert int((joined.targets != NO_LABEL).sum()) == 4
    # Few shapes for many lengths.
    assert joined.inputs["input_ids"].shape == (1, TOKENS)
    assert joined.targets.shape == joined.columns.shape == (LABELS,)
    # Attention over one row of all is dear where the rows have little in common.
    assert join(batch(2, (200,) * 8), 0.0) is not None
    assert join(batch(2, (200,) * 8), 0.01) is None


def test_a_model_whose_attention_has_a_window_is_found_out() -> None:
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    given = batch(20, (6, 7, 8))
    joined = join(given, 0.0)
    assert joined is not None
    torch.manual_seed(0)
    for window, same in ((None, True), (4, False)):
        model = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window, initializer_range=0.5))
        assert same_loss(model, given, joined) is same
