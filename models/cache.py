"""Keep models that were built here in the user's cache folder: each is built by one process, and used only whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from crossover.models.errors import UserError
from crossover.models.weights import folder_sha256

RECORD = "complete.sha256"
"""File that holds the hash of the folder it stands in; it is written last."""


def recorded(folder: Path) -> bool:
    """Return whether `folder` was completed once, without reading the weights."""
    return (folder / RECORD).is_file()


def is_whole(folder: Path) -> bool:
    """Return whether the files of `folder` are those that its record was written for."""
    return recorded(folder) and (folder / RECORD).read_text(encoding="utf-8").strip() == folder_sha256(folder)


def build_once(folder: Path, build: Callable[[Path], None], note: Callable[[str], None]) -> None:
    """Make `folder` whole: do nothing where it is, else let `build` fill a draft and rename that.

    A lock of the kernel lets one process build at a time. A draft found under the lock belongs to a dead process.

    Raises:
        UserError: the cache folder cannot be written.
    """
    if is_whole(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, note):
            if is_whole(folder):
                return
            for dead in folder.parent.glob(f".{folder.name}.draft-*"):
                shutil.rmtree(dead, ignore_errors=True)
            draft = folder.parent / f".{folder.name}.draft-{os.getpid()}"
            draft.mkdir()
            try:
                build(draft)
                (draft / RECORD).write_text(folder_sha256(draft) + "\n", encoding="utf-8")
                for file in draft.iterdir():
                    file.chmod(0o644)  # safetensors writes for its owner alone; a cache may be shared
                if folder.exists():
                    shutil.rmtree(folder)
                draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as e:
        raise UserError(
            f"{folder} cannot be written: {e.strerror or e}; name another place by CROSSOVER_CACHE=FOLDER"
        ) from e


def _locked(folder: Path, note: Callable[[str], None]) -> AcquireReturnProxy:
    """Acquire the lock of `folder`; leaving the block that is opened with it releases it."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        note(f"waiting for the process that makes {folder.name}")
        return lock.acquire()
