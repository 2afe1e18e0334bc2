"""The parts of a guess that a person settles; light, because the command line reads its flags from it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choices:
    """Parts of the guess that are settled already, by the flags of `init` and `run`; an empty one is guessed."""

    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    group: str = ""
    docs: str = ""
    """Folder or file of passages."""
    program: str = ""
    metric: str = ""
    model: str = ""

    def words(self) -> list[str]:
        """Return the flags that make these choices."""
        given = {f"--{name}": value for name, value in vars(self).items() if value}
        texts = {flag: _listed(value) if isinstance(value, tuple) else value for flag, value in given.items()}
        return [word for flag_and_text in texts.items() for word in flag_and_text]


def _listed(names: Sequence[str]) -> str:
    """Return names with commas between them; one that holds commas is quoted, as in CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()
