"""Train sft in several processes, one for each GPU, by an accelerate configuration.

The processes train and save every epoch's weights; this one then reads val with each, by the task's own metric, and
keeps the best. The job and its result are files, and a training that was killed goes on from its last epoch.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback

from crossover.finetune.training.checkpoints import TrainingRun, step_of
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.options import TrainingOptions
from crossover.finetune.training.render import TrainingText
from crossover.finetune.training.selection import loss_history
from crossover.finetune.training.settings import Base, base_of
from crossover.finetune.training.sft_training import sft_trainer
from crossover.finetune.training.train import identity_of, quiet, trainable_parameters
from crossover.models.errors import UserError
from crossover.models.limits import limits_of
from crossover.models.load import tuned_lm
from crossover.models.prompt import engine_of
from crossover.models.text import mend_tokenizer

JOB, RESULT, SECONDS = "job.json", "result.json", "seconds"
"""The files for the processes' task, for its outcome, and for the wall time of all attempts at it."""
OUTPUT_LINES = 30
"""Lines of the processes' output that are kept for the message of a failure."""


def processes_of(file: Path) -> Mapping[str, Any]:
    """Read an accelerate configuration, as `accelerate config` writes it.

    Raises:
        UserError: it cannot be read, is for one process, or is for devices that this machine lacks.
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


def train_launched(
    file: Path, options: TrainingOptions, text: TrainingText, context: FitContext, folder: Path
) -> TrainingRun:
    """Train in the processes of an accelerate configuration, and keep the epoch that scores best on val in `folder`.

    Raises:
        RuntimeError: the processes failed; the message ends with their last output.
        Stopped: a limit of the run is reached; the next run goes on from the last whole epoch.
    """
    engine = engine_of(context.lm)
    job = {
        "identity": identity_of(context, options, [text.sha256, len(text.rows), file.read_text(encoding="utf-8")]),
        "options": asdict(options),
        "text": asdict(text),
        "base": base_of(engine),
        "seed": context.seed,
        "template": engine.tokenizer.chat_template,
    }
    if _read(folder / JOB) != json.loads(json.dumps(job)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    start, before = time.perf_counter(), float(_read(folder / SECONDS) or 0.0)

    def seconds() -> float:
        return before + time.perf_counter() - start

    if not (folder / RESULT).exists():
        _launch(file, folder, context, seconds)
    run = TrainingRun(folder=folder / "best", **(_read(folder / RESULT) or {}))
    _select(run, folder, context)
    run.seconds, run.done = seconds(), True
    return run


def _read(file: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing or half written."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def command_of(file: Path, folder: Path) -> list[str]:
    """Return the command of accelerate's launcher, or for processors of torch's, as accelerate's needs MPI there."""
    config, worker = processes_of(file), ["-m", "crossover.finetune.training.launch", str(folder)]
    if config["distributed_type"] != "MULTI_CPU":
        return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *worker]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(config["num_processes"])]
    return [sys.executable, *launcher, *worker]


def _launch(file: Path, folder: Path, context: FitContext, seconds: Callable[[], float]) -> None:
    """Run the processes to their end, and pass on their progress."""
    output, allowance = list[str](), limits_of(context.lm)
    for checkpoint in folder.glob("checkpoint-*"):
        # The library writes this file last: a checkpoint without it was cut short by a kill.
        if _read(checkpoint / "trainer_state.json") is None:
            shutil.rmtree(checkpoint)
    with subprocess.Popen(
        command_of(file, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                output = [*output[-OUTPUT_LINES:], line.rstrip()]
                if line.startswith("training step"):
                    context.budget.progress(line.rstrip())
                (folder / SECONDS).write_text(str(seconds()), encoding="utf-8")
                if allowance is not None:
                    allowance.check()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError("the training's processes failed: " + " / ".join(output[-8:]))


def _select(run: TrainingRun, folder: Path, context: FitContext) -> None:
    """Score val with the base and with every epoch's weights, and keep the best ones."""

    def score(checkpoint: Path | None) -> float:
        if not context.val:
            # Nothing to select by: each epoch counts as better than the one before, and the last is kept.
            return 0.0 if checkpoint is None else float(step_of(checkpoint))
        mean, used = context.score_val(context.lm if checkpoint is None else tuned_lm(context.lm, checkpoint))
        run.selection += used
        return mean

    epochs = sorted(folder.glob("checkpoint-*"), key=step_of)
    run.val_scores = [score(None)]
    for n, epoch in enumerate(epochs, 1):
        run.val_scores.append(score(epoch))
        context.budget.progress(f"epoch {n}/{len(epochs)}, val {run.val_scores[n]:.3f}")
        if run.judge_newest(start=False):
            copy_epoch(epoch, run.folder)


def copy_epoch(checkpoint: Path, folder: Path) -> None:
    """Copy the files of a checkpoint that serving needs, without the optimizer's state."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix in (".safetensors", ".json", ".jinja", ".model") and file.name != "trainer_state.json":
            shutil.copy2(file, folder)


class StepPrinter(TrainerCallback):  # type: ignore[misc]  # transformers' callback is untyped
    """Print the step and its loss to stderr, where the parent process reads them."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print from one of the processes."""
        if logs and "loss" in logs and state.is_world_process_zero:
            step = f"training step {state.global_step}/{state.max_steps}"
            sys.stderr.write(f"{step}, loss {float(logs['loss']):.3f}\n")
            sys.stderr.flush()


def main(arguments: Sequence[str]) -> int:
    """Run one of the processes: train the job of a folder, and save the weights of every epoch there."""
    from transformers import AutoTokenizer, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    folder = Path(arguments[0])
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    options, text = TrainingOptions(**job["options"]), TrainingText(**job["text"])
    base, seed = Base(*job["base"]), int(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(base.source, trust_remote_code=base.trust_remote_code)
    tokenizer.chat_template = job["template"]
    mend_tokenizer(tokenizer)
    set_seed(seed)
    with quiet():
        trainer = sft_trainer(options, text, base, tokenizer, folder, seed, save_epochs=True)
        trainer.add_callback(StepPrinter())
        last = get_last_checkpoint(str(folder))
        trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        result = {
            "lr": trainer.args.learning_rate,
            "trainable": trainable_parameters(trainer.model),
            "tokens": round(sum(text.lengths) * trainer.state.epoch),
            "losses": loss_history(trainer.state, trainer.args.logging_steps),
            "resumed_from": 0 if last is None else step_of(Path(last)),
        }
        (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
