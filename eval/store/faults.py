"""Name what the disk refused: a full one, a read-only one, a file too large."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from crossover.models.errors import UserError
from crossover.models.limits import Stopped

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
BROKEN = (errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
TORN = re.compile(r"inline_container\.cc|\d+ requested and \d+ written")
"""What torch and numpy say when a file came out shorter than it was written, with no word of the system's."""


def refusal(error: BaseException | None) -> OSError | None:
    """Return the disk's refusal that an error is or comes from, None for any other."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL + CLOSED + BROKEN:
            return error
        # safetensors tells the system's error by its number in the text alone.
        if (told := re.search(r"\(os error (\d+)\)", str(error))) and int(told[1]) in FULL + CLOSED + BROKEN:
            return OSError(int(told[1]), os.strerror(int(told[1])))
        if TORN.search(str(error)):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def storing(place: Path) -> Iterator[None]:
    """Turn what the disk refuses in this block into an error that says where, why and what to do.

    Raises:
        UserError: the disk refused a write.
    """
    try:
        yield
    except (Exception, Stopped) as e:
        found = refusal(e)
        if found is None:
            raise
        full = found.errno in FULL
        remedy = "free some space" if full else "make it writable, or name another folder with --store"
        # A failed write knows no file name; a failed open does.
        where = found.filename or place
        raise UserError(f"{where}: {found.strerror}; {remedy}, and run again, which goes on from there") from e
