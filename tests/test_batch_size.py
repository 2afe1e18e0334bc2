"""A batch goes through the model in parts that fit in memory, and the steps stay the same."""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
import tiny
import torch
from datasets import Dataset
from fakes import fit_intents, metric
from heap import limit_growth, return_freed_blocks
from processes import FORKS, ended
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from trl import SFTConfig

from crossover.eval.run.methods import method_of
from crossover.finetune.training.batch_size import _bytes_kept, by_rows, parts_of, rows_expected, train_in_parts
from crossover.finetune.training.checkpoints import TrainingRun
from crossover.finetune.training.loss import CompletionLossTrainer, apart, in_rows_apart
from crossover.finetune.training.options import TrainingOptions
from crossover.finetune.training.train import quiet
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel, load_model
from crossover.models.spec import ModelSpec
from crossover.programs.modules.classify import Classify
from crossover.programs.task import Budget

CPU_TEXT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


def parts_tried(most: int, expected: int = 8) -> tuple[list[tuple[int, int]], list[str]]:
    """Return the parts and accumulated steps of trainings in a memory that holds `most` rows, and what was noted."""
    tried, notes = list[tuple[int, int]](), list[str]()

    def train(options: TrainingOptions) -> TrainingRun:
        tried.append((options.rows_per_batch, options.accumulate))
        if options.rows_per_batch > most:
            raise RuntimeError(CPU_TEXT)
        return TrainingRun(Path())

    train_in_parts(train, TrainingOptions(batch_size="auto", accumulate=3), expected, 512, notes.append)
    return tried, notes


def test_what_does_not_fit_is_halved_and_a_step_keeps_its_rows() -> None:
    assert parts_tried(most=8) == ([(8, 3)], [])
    tried, notes = parts_tried(most=3)
    assert tried == [(8, 3), (4, 6), (2, 12)]
    assert notes[0] == "note: batch of 8 as 2 x 4: 8 rows of 512 tokens did not fit in memory"
    assert notes[1] == "note: batch of 8 as 4 x 2: 4 rows of 512 tokens did not fit in memory"


def test_what_memory_should_not_hold_is_not_tried() -> None:
    would_not = "note: batch of 8 as 2 x 4: 8 rows of 512 tokens would not fit in memory"
    assert parts_tried(most=8, expected=7) == ([(4, 6)], [would_not])
    assert parts_tried(most=1, expected=0)[0] == [(1, 24)]


def test_a_row_that_does_not_fit_is_refused_with_its_length_and_the_remedy() -> None:
    with pytest.raises(UserError, match=r"a row of 512 tokens does not fit in memory; shorten the row, set `gradient"):
        parts_tried(most=0)


def test_the_longest_rows_tell_how_many_fit() -> None:
    """A row keeps four bytes a token; the two weights need twelve bytes each, and sixty percent of memory are used."""
    model = torch.nn.Linear(1, 1)
    trainer = SimpleNamespace(
        model=model,
        args=SimpleNamespace(gradient_checkpointing=False),
        train_dataset=[torch.ones(n) for n in (3, 1000, 5, 1000)],
        data_collator=lambda rows: {"tokens": torch.cat(rows)},
        accelerator=SimpleNamespace(autocast=contextlib.nullcontext),
        compute_loss=lambda model, batch: model(batch["tokens"][:, None]).sum(),
    )
    free = (24 + 4000 * 3 + 1) / 0.6
    assert rows_expected(trainer, [3, 1000, 5, 1000], 8, int(free) + 1) == 3
    assert rows_expected(trainer, [3, 1000, 5, 1000], 2, int(free) + 1) == 2
    assert rows_expected(trainer, [3, 1000, 5, 1000], 8, 0) == 0


def test_what_rows_share_takes_memory_once(tmp_path: Path) -> None:
    """All rows begin with 90 tokens and end with 10 of their own: a batch of 64 is as long as seven and a bit."""
    ids = [[*range(5, 95), *range(5 + n, 15 + n)] for n in range(3)]
    rows = [{"input_ids": row, "labels": [-100] * 95 + row[95:]} for row in ids]
    with quiet():
        trainer = CompletionLossTrainer(
            model=LlamaForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float32),
            args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(tiny.FOLDER),
        )
    weigh = in_rows_apart(trainer, rows[:2])
    assert trainer.joins
    assert [weigh(n) for n in (1, 64)] == pytest.approx([1, 0.9 + 64 * 0.1])
    # What one row keeps and the optimizer's states leave room for one row, or for all the rows that seven take apart.
    states = 12 * sum(p.numel() for p in trainer.model.parameters())
    with apart(trainer):
        one = _bytes_kept(trainer, rows[:2]) - _bytes_kept(trainer, rows[:1])
    assert [rows_expected(trainer, [100] * 3, 64, int((states + n * one) / 0.6) + 9) for n in (1, 7.3)] == [1, 64]


def test_a_batch_is_split_into_equal_parts() -> None:
    assert [parts_of(12, most) for most in (12, 11, 5, 1, 0)] == [12, 6, 4, 1, 1]
    assert parts_of(7, 6) == 1


@pytest.mark.parametrize("size", [0, "all"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_other_sizes_are_refused(method: str, size: int | str) -> None:
    with pytest.raises(UserError, match=f"{method} batch_size {size!r} is neither a number of rows nor auto; set"):
        method_of(method, {"batch_size": size})


def test_a_search_takes_no_batch_size_auto() -> None:
    with pytest.raises(UserError, match="batch_size auto is for one training in one process; leave out `search`"):
        method_of("sft", {"batch_size": "auto", "search": {}})


class Averaging(torch.nn.Module):
    """A linear model of two numbers a row, whose loss is a mean over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        torch.nn.init.zeros_(self.linear.weight)

    def forward(self, rows: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.linear(rows)[:, 0] - labels) ** 2).mean()}


def test_parts_of_a_mean_count_by_their_rows(tmp_path: Path) -> None:
    """Thirteen rows: the second batch of eight is five rows, which are parts of four and of one."""
    data = [{"rows": torch.tensor([float(n), 1.0]), "labels": torch.tensor(3.0 * n * n)} for n in range(13)]

    def trained(part: int) -> torch.Tensor:
        torch.manual_seed(0)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to=[],
            num_train_epochs=2,
            learning_rate=0.01,
            optim="sgd",
            per_device_train_batch_size=part,
            gradient_accumulation_steps=8 // part,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = by_rows(Trainer)(model=Averaging(), args=arguments, train_dataset=data)
        with quiet():
            trainer.train()
        weight: torch.Tensor = trainer.model.linear.weight.detach()
        return weight

    whole = trained(8)
    assert whole.abs().max() > 0
    assert all(torch.allclose(trained(part), whole, rtol=1e-5) for part in (4, 1))


@pytest.mark.slow
def test_a_batch_that_fits_trains_as_one_of_eight_bit_for_bit(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    def fit(size: int | str) -> dict[str, Any]:
        options = {"rank": 4, "bf16": False, "epochs": 1, "batch_size": size}
        budget = Budget(workdir=tmp_path / str(size), threads=4)
        fitted = fit_intents("sft", options, intents, spoken.lm, budget)
        return {name: fitted.notes.get(name) for name in ("loss", "val_scores", "micro_batch")}

    assert fit("auto") == fit(8)


def wide_model(folder: Path) -> None:
    """Save a model that keeps about 60 MB of a row of 100 tokens for the backward pass."""
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER)
    shape = {"hidden_size": 32, "intermediate_size": 20_000, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fit_limited(folder: str, rows: list[dict[str, str]], size: int | str, megabytes: int = 0) -> None:
    """Fit in a process whose heap may grow by so many megabytes once the model is loaded; 0 for no limit."""
    if megabytes:
        return_freed_blocks()
    model = load_model(ModelSpec(f"local:{folder}/model", prompt_format="plain", decode="free", max_tokens=2))
    examples, lines = [dspy.Example(**row).with_inputs("text") for row in rows], list[str]()
    if megabytes:
        limit_growth(megabytes)
    with dspy.context(lm=model.lm, adapter=model.prompt_format):
        fitted = method_of(
            "sft", {"bf16": False, "epochs": 1, "target_modules": "q_proj, v_proj", "batch_size": size}
        ).fit(
            Classify(["text"], "label", []),
            train=examples,
            val=examples[:1],
            metric=metric,
            lm=model.lm,
            seed=0,
            budget=Budget(workdir=Path(folder, str(size)), threads=1, progress=lines.append),
        )
    notes = {name: fitted.notes.get(name) for name in ("loss", "micro_batch")}
    Path(folder, f"{size}.json").write_text(json.dumps(notes | {"lines": lines}))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's heap is Linux's")
def test_beyond_a_limit_on_memory_training_takes_the_same_steps_in_parts(
    intents: list[dspy.Example], tmp_path: Path
) -> None:
    rows = [e.toDict() | {"text": 8 * f"{e['text']} "} for e in intents[:16]]
    wide_model(tmp_path / "model")
    process: Any = FORKS.Process(target=fit_limited, args=(str(tmp_path), rows, 8, 250))
    process.start()
    fit_limited(str(tmp_path), rows, "auto")
    assert ended(process) == 0
    free, limited = (json.loads((tmp_path / f"{size}.json").read_text()) for size in ("auto", 8))
    assert free["micro_batch"] is None
    assert limited["micro_batch"] in (1, 2, 4)
    assert len(free["loss"]) == 2
    assert limited["loss"] == pytest.approx(free["loss"], rel=1e-3)
    assert any(" did not fit in memory" in line for line in limited["lines"])
