"""Show the progress of a run on stderr: cell n of m, examples a second, dollars so far, time left."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

from crossover.eval.report.text import message, visible
from crossover.models.api_keys import redact

PLAIN_EVERY = 10.0
"""Seconds between lines on a stream that is not a terminal."""
REDRAW_EVERY = 0.1
"""Seconds between redraws on a terminal."""
FEWEST_DONE = 0.1
"""Part of the first cell whose pace tells the time left; its first examples wait for the model to load."""
SHORTEST_NAME = 16
"""Characters of a cell's name that every line shows."""


def columns_of(stream: TextIO) -> int:
    """Return the columns of a terminal, or $COLUMNS where it is set; 80 where neither is known."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns) or 80
    except (ValueError, OSError):
        return 80


class Share(NamedTuple):
    """Parts of a run's time that one cell is expected to take, in any unit."""

    fit: float
    test: float


class Progress:
    """One updating line on a terminal, a plain line now and then elsewhere; safe to call from many threads."""

    def __init__(
        self,
        total_cells: int = 0,
        *,
        stream: TextIO | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock; `stream` is stderr unless given; a disabled progress writes nothing."""
        self.total_cells = total_cells
        self._stream = stream or sys.stderr
        self._enabled, self._clock = enabled, clock
        self._terminal = self._stream.isatty()
        self._lock = threading.RLock()
        self._started = clock()
        self._cell = 0
        self._name = self._doing = ""
        self._done = self._total = self._first_done = 0
        self._trained = self._trained_before = 0.0
        """Share of the cell's training that is done, and of it the part before this process's first step."""
        self._examples_started = self._cell_started = self._training_started = self._started
        self._shares: Sequence[Share] = ()
        self._worked = 0.0
        """Shares of the finished cells."""
        self._usd = 0.0
        self._shown_at = -PLAIN_EVERY
        self._drawn = 0
        self._last_line = ""

    def expect(self, shares: Sequence[Share]) -> None:
        """Take the parts of the run's time that the cells are expected to take, in their order."""
        with self._lock:
            self.total_cells, self._shares = len(shares), shares

    def start_cell(self, index: int, name: str) -> None:
        """Show that cell `index`, counted from 1, begins."""
        with self._lock:
            if not self._cell:
                self._started = self._clock()
            self._cell, self._name, self._doing = index, visible(name), ""
            self._cell_started = self._clock()
            self._done = self._total = 0
            self._trained = 0.0
            self._show(force=True)

    def leave_out(self, seconds: float) -> None:
        """Leave seconds that the shares of the cells do not cover out of the pace that tells the time left."""
        with self._lock:
            self._started += seconds
            self._cell_started += seconds

    def examples(self, done: int, total: int) -> None:
        """Show how many test examples of the cell are scored."""
        with self._lock:
            if total != self._total or done < self._done or not self._total:
                self._examples_started, self._first_done = self._clock(), done
            self._done, self._total, self._doing, self._trained = done, total, "", 0.0
            self._show()

    def trained(self, share: float) -> None:
        """Show which share of the cell's training is done, above 0 and up to 1."""
        with self._lock:
            if not self._trained or share < self._trained:
                # What came before took none of this training's time: the steps up to the checkpoint that it goes on
                # from, or another training of the cell.
                self._trained_before, self._training_started = share, self._clock()
            self._trained = share
            self._show()

    def note(self, text: str) -> None:
        """Show the current activity; notes, warnings and errors get a line that stays.

        Disabled progress shows warnings and errors alone.
        """
        text = redact(text)
        with self._lock:
            grave = text.startswith(("warning: ", "error: "))
            if not self._enabled and not grave:
                return
            if self._terminal and not grave and not text.startswith("note: "):
                self._doing = visible(text)
                self._show()
            else:
                self._erase()
                self._write(message(text, columns_of(self._stream) if self._terminal else None) + "\n")

    def spend(self, usd: float) -> None:
        """Add dollars to the sum so far."""
        with self._lock:
            self._usd += usd
            self._show()

    def finish_cell(self) -> None:
        """Count the cell as measured."""
        with self._lock:
            if 0 < self._cell <= len(self._shares):
                # A cell whose rows all lay there, from a run that was killed, took no time of this one.
                here, fresh = self._shares[self._cell - 1], self._total - self._first_done if self._total else 1
                if fresh:
                    self._worked += here.fit + here.test * fresh / max(1, self._total)
            self._doing = ""
            self._done = self._total = 0

    def close(self) -> None:
        """Erase the updating line."""
        with self._lock:
            self._erase()

    def line(self, width: int | None = None) -> str:
        """Return the line in its current state; the cell's name is cut where `width` has no room for the figures."""
        with self._lock:
            parts = [self._doing] if self._doing else []
            if self._trained:
                parts.append(f"{self._trained:.0%} trained")
            if self._total:
                parts.append(f"{self._done}/{self._total} examples{self._rate()}")
            if self._usd:
                parts.append(f"${self._usd:.2f} so far")
            if left := self._left():
                parts.append(f"about {left} left")
            head, rest = f"cell {self._cell} of {max(self.total_cells, self._cell)}: ", ", ".join(["", *parts])
            room = len(self._name) if width is None else max(width - len(head) - len(rest), SHORTEST_NAME)
            name = self._name if len(self._name) <= room else f"{self._name[: room - 1]}…"
            return f"{head}{name}{rest}"[:width]

    def _rate(self) -> str:
        seconds, count = self._clock() - self._examples_started, self._done - self._first_done
        if seconds <= 0 or count <= 0:
            return ""
        rate = count / seconds
        return f" at {rate:.1f}/s" if rate >= 1 else f" at {60 * rate:.1f}/min"

    def _left(self) -> str:
        """Return the time left if the rest goes at the pace of what is done; empty before anything is."""
        if not 0 < self._cell <= len(self._shares):
            return ""
        here, later = self._shares[self._cell - 1], sum(sum(s) for s in self._shares[self._cell :])
        if not self._total:
            pace = (self._cell_started - self._started) / self._worked if self._worked else 0.0
            if (fresh := self._trained - self._trained_before) > 0:
                fitting = (self._clock() - self._training_started) / fresh * (1 - self._trained)
                pace = (self._clock() - self._started) / (self._worked + here.fit * fresh)
            else:
                # How far the fit has come is not known: it takes as long as forecast, or ends now if it took longer.
                fitting = max(0.0, pace * here.fit - (self._clock() - self._cell_started))
            left = fitting + pace * (here.test + later)
        else:
            # Examples that an earlier run scored took no time of this one.
            before = here.test * self._first_done / self._total
            done = here.fit + here.test * self._done / self._total - before
            if not self._worked and done < FEWEST_DONE * sum(here):
                return ""
            worked = self._worked + done
            left = (self._clock() - self._started) / worked * (sum(here) - before - done + later) if worked > 0 else 0.0
        return duration(left) if left > 0 else ""

    def _show(self, *, force: bool = False) -> None:
        now = self._clock()
        every = REDRAW_EVERY if self._terminal else PLAIN_EVERY
        if not self._enabled or not self._cell or (now - self._shown_at < every and not force):
            return
        self._shown_at = now
        if not self._terminal:
            # The same words again would look like a cell that begins twice.
            if (line := self.line()) != self._last_line:
                self._write(f"{line}\n")
            self._last_line = line
            return
        # The last column stays free: a full line would move the cursor to the next one.
        text = self.line(columns_of(self._stream) - 1)
        self._write("\r" + text + " " * max(0, self._drawn - len(text)))
        self._drawn = len(text)

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
