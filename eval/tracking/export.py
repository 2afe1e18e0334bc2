"""Export a finished cell to a folder for other tools."""

import glob
import shutil
from pathlib import Path

from crossover.eval.store.cells import cell_folder
from crossover.eval.store.recorded import params_with
from crossover.eval.store.result import Result
from crossover.eval.tracking.card import serving_command
from crossover.eval.tracking.package import NotPortableError, recorded_task, write_package
from crossover.models.errors import UserError
from crossover.models.jsonl import replacing


def export_cell(store: Path, result: Result, folder: Path, *, dtype: str = "float32") -> list[str]:
    """Write a finished cell to an empty folder with merged weights beside an adapter; return a line for each part.

    Raises:
        UserError: the folder is not empty, or the weights are gone or changed.
    """
    folder = folder.resolve()
    if folder == Path.cwd() or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{folder}: not empty; name a new folder")
    for killed in folder.parent.glob(f"{glob.escape(folder.name)}.*.part"):
        shutil.rmtree(killed)
    task = recorded_task(params_with(store, result.key), result.cell.task)
    with replacing(folder) as draft:
        try:
            lines = write_package(store, result, draft, task=task, merge_as=dtype)
        except NotPortableError:
            lines = write_package(store, result, draft, merge_as=dtype)
        rows = cell_folder(store, result.key) / "fit" / "train.jsonl"
        if rows.exists():
            shutil.copy2(rows, draft / rows.name)
            lines.insert(1, "train.jsonl: the training rows, as prompt and completion")
    serving = serving_command(result, folder, folder)
    return lines if serving.startswith("#") else [*lines, f"serve: {serving}"]
