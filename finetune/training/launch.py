"""Train sft in several processes, as an accelerate configuration says: one for each GPU.

The processes train and keep every epoch's weights; this one then reads val with each, by the task's own metric, and
keeps the best. What they need to know goes through a file, and a training that was killed goes on from its last epoch.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import torch
import yaml

from crossover.finetune.training.render import TrainingText
from crossover.finetune.training.selection import TrainingRun, told
from crossover.finetune.training.train import (
    Ground,
    identity_of,
    quiet,
    spent_on,
    trainable_parameters,
    trainer_of,
)
from crossover.models.errors import UserError
from crossover.models.limits import limits_of
from crossover.models.load import tuned_lm
from crossover.models.prompt import engine_of
from crossover.programs.score import mean_score, score_examples

if TYPE_CHECKING:
    from crossover.finetune.sft import Sft

JOB, TOLD, SECONDS = "job.json", "told.json", "seconds"
"""What the processes are to do, what came of it, and how long all of them took that were started."""


def processes_of(file: Path) -> Mapping[str, Any]:
    """Return an accelerate configuration, as `accelerate config` writes it.

    Raises:
        UserError: it cannot be read, is for one process, or is for devices that are not here.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind, count = str(config["distributed_type"]), int(config["num_processes"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as e:
        what = f"sft accelerate_file {file}: no configuration of accelerate ({type(e).__name__}: {e})"
        raise UserError(f"{' '.join(what.split())}; let `accelerate config --config_file` write one") from e
    if count < 2:
        raise UserError(f"sft accelerate_file {file}: num_processes is {count}; leave it out, one process needs none")
    if kind != "MULTI_CPU" and torch.cuda.device_count() < min(2, count):
        here = f"this machine has {torch.cuda.device_count()} CUDA devices"
        raise UserError(f"sft accelerate_file {file}: {kind} needs several GPUs, and {here}; leave it out")
    return dict(config)


def train_launched(options: "Sft", text: TrainingText, ground: Ground, folder: Path) -> TrainingRun:
    """Train in the processes of `options.accelerate_file`, and keep the epoch that scores best on val in `folder`.

    Raises:
        RuntimeError: the processes failed; the message ends with what they said last.
        Stopped: the allowance ended; the next run goes on from the last whole epoch.
    """
    engine, run = engine_of(ground.lm), TrainingRun(folder=folder / "best")
    job = {
        "identity": identity_of(ground, asdict(options), text.sha256, len(text.rows)),
        "options": asdict(options),
        "text": asdict(text),
        "base": str(engine.folder.resolve()),
        "seed": ground.seed,
        "template": engine.tokenizer.chat_template,
    }
    if _read(folder / JOB) != json.loads(json.dumps(job)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    start, before = time.perf_counter(), float(_read(folder / SECONDS) or 0.0)
    if not (folder / TOLD).exists():
        _launch(Path(options.accelerate_file), folder, ground, lambda: before + time.perf_counter() - start)
    for name, value in (_read(folder / TOLD) or {}).items():
        setattr(run, name, value)
    _select(run, folder, ground)
    run.seconds, run.done = before + time.perf_counter() - start, True
    return run


def _read(file: Path) -> Any:
    """Return what a JSON file holds; None where there is none, or half of one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def command_of(file: Path, folder: Path) -> list[str]:
    """Return what starts the processes: accelerate's launcher, or for processors torch's, as accelerate's needs MPI."""
    config, worker = processes_of(file), ["-m", "crossover.finetune.training.launch", str(folder)]
    if config["distributed_type"] != "MULTI_CPU":
        return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *worker]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(config["num_processes"])]
    return [sys.executable, *launcher, *worker]


def _launch(file: Path, folder: Path, ground: Ground, seconds: Any) -> None:
    """Run the processes to their end, and pass on what they tell."""
    said, allowance = list[str](), limits_of(ground.lm)
    for checkpoint in folder.glob("checkpoint-*"):
        # The library writes it last.
        if _read(checkpoint / "trainer_state.json") is None:
            shutil.rmtree(checkpoint)
    with subprocess.Popen(
        command_of(file, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = [*said[-30:], line.rstrip()]
                if line.startswith("training step"):
                    ground.budget.progress(line.rstrip())
                (folder / SECONDS).write_text(str(seconds()), encoding="utf-8")
                if allowance is not None:
                    allowance.check()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError("the training's processes failed: " + " / ".join(said[-8:]))


def _select(run: TrainingRun, folder: Path, ground: Ground) -> None:
    """Score val with the base and with every epoch's weights, and keep the best ones."""

    def score(lm: dspy.LM) -> float:
        with dspy.context(lm=lm):
            rows = list(score_examples(ground.program, ground.val, ground.metric, threads=ground.budget.threads))
        run.selection += spent_on(rows)
        return mean_score(rows)

    epochs = sorted(folder.glob("checkpoint-*"), key=lambda f: int(f.name.partition("-")[2]))
    run.val_scores = [score(ground.lm)] if ground.val else [0.0]
    for n, epoch in enumerate(epochs, 1):
        run.val_scores.append(score(tuned_lm(ground.lm, epoch)) if ground.val else float(n))
        best = run.val_scores[n] > max(run.val_scores[:n])
        ground.budget.progress(f"epoch {n}/{len(epochs)}, val {run.val_scores[n]:.3f}")
        if best or n == 1:
            run.best_epoch = n if best else 0
            keep_weights(epoch, run.folder)


def keep_weights(checkpoint: Path, folder: Path) -> None:
    """Copy what can be served of a checkpoint, its optimizer's state left out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix in (".safetensors", ".json", ".jinja", ".model") and file.name != "trainer_state.json":
            shutil.copy2(file, folder)


def main(arguments: Sequence[str]) -> int:
    """Be one of the processes: train what the job says, and save the weights of every epoch."""
    from transformers import AutoTokenizer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    from crossover.finetune.sft import Sft

    class Teller(TrainerCallback):  # type: ignore[misc]  # transformers' callback is untyped
        """Tell how far the training is."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                step = f"training step {state.global_step}/{state.max_steps}"
                sys.stderr.write(f"{step}, loss {float(logs['loss']):.3f}\n")
                sys.stderr.flush()

    folder = Path(arguments[0])
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    options, text = Sft(**job["options"]), TrainingText(**job["text"])
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    tokenizer.chat_template = job["template"]
    with quiet():
        trainer = trainer_of(
            options,
            text,
            Path(job["base"]),
            tokenizer,
            folder,
            job["seed"],
            save_strategy="epoch",
            save_total_limit=None,
        )
        trainer.add_callback(Teller())
        last = get_last_checkpoint(str(folder))
        trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        come = {
            "lr": trainer.args.learning_rate,
            "trainable": trainable_parameters(trainer.model),
            "tokens": round(sum(text.lengths) * trainer.state.epoch),
            "losses": told(trainer.state, trainer.args.logging_steps),
            "resumed_from": 0 if last is None else int(last.rpartition("-")[2]),
        }
        (folder / TOLD).write_text(json.dumps(come), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
