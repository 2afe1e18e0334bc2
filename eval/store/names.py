"""Make file names of names that people choose."""

import hashlib

READABLE_BYTES = 80
"""Longest readable part of a file name; file systems take 255 bytes in all."""


def file_name(name: str) -> str:
    """Return a name for a file, folder or registered model, another one for every `name`.

    A name of letters, digits, `-`, `_` and `.` stays as it is; any other, and one that is long or begins with a dot, is
    made readable and ends in its hash.
    """
    readable = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).lstrip(".")
    short = readable.encode()[:READABLE_BYTES].decode(errors="ignore")
    if short == name and name:
        return name
    return f"{short}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
