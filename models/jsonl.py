"""Append and read JSON lines, and replace whole files, so that a kill at any moment leaves them readable."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from crossover.models.api_keys import redact, redact_json
from crossover.models.errors import UserError


class LineWriter:
    """Append JSON lines without secrets to a file; what was written outlives the process that wrote it."""

    def __init__(self, file: Path, default: Callable[[Any], Any] = str) -> None:
        """Open the file; `default` converts a value that JSON cannot represent."""
        # One encoder for all: `json.dumps` with options builds a new one for every record.
        self._encode = json.JSONEncoder(ensure_ascii=False, default=default).encode
        self._file = file.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._file.close()

    def write(self, records: Iterable[Any]) -> None:
        """Append each record as one line, and hand all of them to the system."""
        lines = [f"{self._encode(record)}\n" for record in records]
        text = "".join(lines)
        # One text for all of them: what is secret is found out once, and hardly any text holds it.
        if redact(text) != text:
            text = "".join(f"{redact_json(line, self._encode)}\n" for line in map(str.rstrip, lines))
        self._file.write(text)
        self._file.flush()

    def sync(self) -> None:
        """Wait until all that was written is on the disk, so that it outlives the machine as well."""
        os.fsync(self._file.fileno())


def append_lines(
    file: Path, records: Iterable[Any], *, fsync: bool = False, default: Callable[[Any], Any] = str
) -> None:
    """Append each record to `file` as one JSON line, without secrets; with `fsync`, return when they are on disk.

    `default` converts a value that JSON cannot represent.
    """
    with LineWriter(file, default) as writer:
        writer.write(records)
        if fsync:
            writer.sync()


def read_lines(
    file: Path,
    parse: Callable[[bytes], Any] = json.loads,
    *,
    note: Callable[[str], None] = lambda line: None,
    remedy: str = "move the file away or restore it, then run again",
) -> Iterator[Any]:
    """Yield the lines of `file`, each read by `parse`; a missing file has none.

    A last line that has no line break, or that `parse` refuses, was torn by a kill: it is cut off, so that the next
    append starts a new line, and `note` gets a warning.

    Raises:
        UserError: a line before the last is damaged, which no kill does.
    """
    if not file.exists():
        return
    good = 0
    with file.open("rb") as f:
        for number, line in enumerate(f, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("torn")
                record = parse(line)
            except (ValueError, TypeError) as e:
                if f.read(1):
                    raise UserError(f"{file}:{number}: damaged; {remedy}") from e
                break
            good += len(line)
            yield record
    if good < file.stat().st_size:
        note(f"warning: {file}: the last line was torn by a crash; it is cut off and measured again")
        os.truncate(file, good)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path for a draft of `target`, a file or folder, and move the draft to `target` at the end.

    Readers see all of the old content or all of the new. Every draft has a unique name, so that two processes may
    write the same target; a folder that another process has finished meanwhile is not replaced. An exception leaves
    `target` as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield draft
        try:
            draft.replace(target)
        except OSError:
            # A folder cannot replace one with content: another process has finished the same one meanwhile.
            if not (draft.is_dir() and target.is_dir()):
                raise
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Replace the content of `file`, or of the file that it is a link to; on disk when this returns."""
    with replacing(file.resolve()) as draft, draft.open("w", encoding="utf-8", newline="") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def write_json(file: Path, data: Any) -> None:
    """Replace the content of `file` by `data` as JSON without secrets, on disk when this returns.

    Other types than those of JSON are written by `str`.
    """
    encode = json.JSONEncoder(ensure_ascii=False, indent=1, default=str).encode
    write_text(file, redact_json(encode(data), encode))
