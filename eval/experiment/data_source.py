"""Tell data from experiment files, and name what is made of it; light, because every verb asks before it reads FILE."""

from pathlib import Path

from crossover.programs.readers import READERS
from crossover.programs.sources import data_suffix


def is_data(source: str) -> bool:
    """Return whether `source` is a data file or a dataset, not an experiment or a folder."""
    return source.startswith("hf:") or data_suffix(Path(source)) in READERS


def task_name(source: str) -> str:
    """Return the name of a task for a data file or a dataset: its own, without suffixes."""
    name = Path(source.removeprefix("hf:")).name
    return name.partition(".")[0] or "task"


def experiment_file_of(source: str) -> Path:
    """Return the path of a data file's experiment file: beside the data, or in this folder for a dataset."""
    folder = Path() if source.startswith("hf:") else Path(source).parent
    return folder / f"{task_name(source)}.crossover.yaml"
