"""Which epoch's weights a training keeps, and what a kill leaves of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from crossover.finetune.training.checkpoints import Checkpoints, TrainingRun


def judged(scores: list[float], *, start: bool = False) -> TrainingRun:
    run = TrainingRun(folder=Path(), val_scores=scores[:1])
    for score in scores[1:]:
        run.val_scores.append(score)
        run.judge_newest(start=start)
    return run


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.5, 0.6, 0.7, 0.65], 2, 2),
        # Nothing beat the untrained model: the best of the epochs is kept all the same.
        ([0.5, 0.1, 0.45, 0.48], 3, 0),
        ([0.5, 0.5, 0.5], 1, 0),
    ],
)
def test_the_best_epoch_is_kept_and_its_score_is_told(scores: list[float], kept: int, best: int) -> None:
    run = judged(scores)
    assert (run.kept_epoch, run.best_epoch) == (kept, best)
    assert run.kept_score == scores[kept]


def test_where_the_weights_before_training_can_be_kept_no_worse_epoch_replaces_them() -> None:
    assert judged([0.5, 0.1, 0.45], start=True).kept_epoch == 0
    assert judged([0.5, 0.6, 0.45], start=True).kept_epoch == 1


def writes(text: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text(text)

    return save


def test_best_weights_that_a_kill_left_without_a_checkpoint_are_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    killed = Checkpoints(folder, "one training", print)
    for epoch, text in ((1, "first"), (2, "second")):
        killed.run.kept_epoch = epoch
        killed.keep(writes(text))
        if epoch == 1:
            checkpoint = folder / "checkpoint-10"
            checkpoint.mkdir()
            (checkpoint / "trainer_state.json").write_text("{}")
            killed.add(checkpoint)
    # Killed here, before a checkpoint of the second epoch; the next process need not find it better.
    again = Checkpoints(folder, "one training", print)
    assert again.newest == checkpoint
    assert again.run.folder == folder / "best-1"
    assert not (folder / "best-2").exists()
    again.finish()
    over = Checkpoints(folder, "one training", print)
    assert over.run.done
    assert (over.run.folder / "model.safetensors").read_text() == "first"


def test_better_weights_replace_those_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "sft", "one training", print)
    for epoch in (1, 3):
        checkpoints.run.kept_epoch = epoch
        checkpoints.keep(writes(str(epoch)))
    checkpoints.finish()
    assert [f.name for f in (tmp_path / "sft").glob("best-*")] == ["best-3"]
