"""Fine-tuning speed: the `sft` method against TRL's own command.

`python benchmarks/sft.py [--model NAME] [--rows N]` trains LoRA, by `trl sft` as it comes, by `trl sft` with the
settings that `sft` uses, by `trl sft` with packing, and by `sft`; it prints training tokens per second, the ratio to
the second, the largest difference between the loss curves of the second and the last, and peak memory.
`sft` is timed with its loading and its readings of val, the command by its own `train_runtime`.
"""

import argparse
import ast
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import dspy

from crossover.eval.run.passages import Indexes, Passages
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.options import TrainingOptions, learning_rate
from crossover.finetune.training.render import render_training_text
from crossover.finetune.training.settings import sft_config
from crossover.finetune.training.sft_training import train_sft
from crossover.finetune.training.targets import gold_calls
from crossover.models.device import accelerator
from crossover.models.load import load_model
from crossover.models.prompt import engine_of
from crossover.models.source import weights_source
from crossover.models.spec import ModelSpec
from crossover.programs.load import builtin_task
from crossover.programs.task import Budget

SEED = 0


@dataclass(frozen=True)
class Measured:
    """One training."""

    name: str
    tokens_per_second: float
    losses: list[float]
    peak_mib: float


def trl_command(
    name: str, source: Path | str, data: Path, config: object, options: TrainingOptions, tokens: int, *extra: str
) -> Measured:
    """Train the weights of `source` by `trl sft` in a process of its own."""
    c = vars(config)
    command = [
        str(Path(sys.executable).parent / "trl"),
        "sft",
        "--model_name_or_path",
        str(source),
        "--dtype",
        "float32",
        "--dataset_name",
        str(data),
        "--use_peft",
        "--lora_r",
        str(options.rank),
        "--lora_alpha",
        str(options.alpha),
        "--lora_target_modules",
        "all-linear",
        "--lora_dropout",
        str(options.dropout),
        "--report_to",
        "none",
        "--output_dir",
        str(data / "out"),
        "--save_strategy",
        "no",
        "--disable_tqdm",
        "true",
        *(
            w
            for k in (
                "num_train_epochs",
                "per_device_train_batch_size",
                "learning_rate",
                "lr_scheduler_type",
                "warmup_steps",
                "max_length",
                "bf16",
                "use_cpu",
                "seed",
                "data_seed",
                "logging_steps",
                "gradient_checkpointing",
                "dataloader_pin_memory",
            )
            for w in (f"--{k}", str(getattr(c[k], "value", c[k])))
        ),
        *extra,
    ]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=dict(os.environ, HF_HUB_OFFLINE="1")
    )
    logs = [ast.literal_eval(line) for line in re.findall(r"^\{.*\}$", done.stdout, re.M)]
    if done.returncode or not logs:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    runtime = float(logs[-1]["train_runtime"])
    losses = [float(x["loss"]) for x in logs if "loss" in x]
    return Measured(name, tokens / runtime, losses, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


def main() -> int:
    """Measure and print the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rows", type=int, default=600)
    p.add_argument("--model", default="smollm2")
    a = p.parse_args()
    options, source = TrainingOptions(epochs=1), weights_source(a.model)
    model, task = load_model(ModelSpec(a.model)), builtin_task("stdlib_rag")
    with dspy.context(lm=model.lm, adapter=model.prompt_format), tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        train = Passages(task, None, Indexes(data, str)).attach(task.train[: a.rows], "gold")
        budget = Budget(metric_calls=None, workdir=data / "sft", threads=1)
        text = render_training_text(task.program(), gold_calls(task.program(), train), model.lm)
        (data / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in text.rows), encoding="utf-8")
        options = replace(options, lr=learning_rate(options, engine_of(model.lm).model.num_parameters()))
        config, tokens = sft_config(options, text, data / "out", SEED), sum(text.lengths)
        grouped = ("--train_sampling_strategy", "group_by_length")
        runs = [
            trl_command("trl sft, as it comes", source, data, config, options, tokens),
            trl_command("trl sft, rows of like length together", source, data, config, options, tokens, *grouped),
            trl_command("trl sft --packing", source, data, config, options, tokens, "--packing", "true"),
        ]
        start = time.perf_counter()
        context = FitContext(task.program(), task.val[:4], task.metric, model.lm, SEED, budget)
        run = train_sft(options, text, context, data / "sft")
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    runs.append(Measured("sft", tokens / seconds, run.losses, peak))
    print(f"{a.model}; accelerator: {accelerator()}")
    print(f"{len(text.rows)} rows, {tokens:,} tokens, LoRA rank {options.rank}, batches of {options.batch_size}\n")
    print("training                                tokens/s   ratio  last loss  peak MiB")
    for r in runs:
        ratio = r.tokens_per_second / runs[1].tokens_per_second
        print(f"{r.name:38}  {r.tokens_per_second:8.0f}  {ratio:5.2f}x  {r.losses[-1]:9.4f}  {r.peak_mib:8.0f}")
    apart = max(abs(x - y) for x, y in zip(runs[1].losses, run.losses, strict=True))
    print(f"\nlargest difference of the logged losses, sft against trl sft in the same order: {apart:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
