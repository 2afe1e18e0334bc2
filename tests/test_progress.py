"""The progress line says how far a run is, and is quiet when asked."""

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from crossover.eval.run.progress import Progress, Share, duration


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def begun(clock: Clock, *shares: Share) -> Progress:
    """Return the progress of a run that expects these shares, in its first cell."""
    progress = Progress(len(shares), stream=io.StringIO(), clock=clock)
    progress.expect(shares)
    progress.start_cell(1, "a")
    return progress


def test_the_line_tells_cell_rate_spend_and_time_left() -> None:
    clock = Clock()
    progress = begun(clock, Share(0, 3), Share(0, 2), Share(6, 1), Share(0, 3))
    clock.now = 30
    progress.finish_cell()
    progress.start_cell(2, "intents few_shot")
    progress.examples(0, 100)
    clock.now = 40
    progress.spend(0.25)
    progress.examples(50, 100)
    parts = ["cell 2 of 4: intents few_shot", "50/100 examples at 5.0/s", "$0.25 so far", "about 1 min 50 s left"]
    assert progress.line() == ", ".join(parts)
    clock.now = 1000
    assert "50/100 examples at 3.1/min, " in progress.line()


def test_the_first_examples_of_a_run_tell_no_time_left() -> None:
    """They wait for the model to load; the first real run had `1 h 44 min left`, and took 13 minutes."""
    clock = Clock()
    progress = begun(clock, Share(0, 1), Share(0, 9))
    progress.examples(0, 80)
    clock.now = 10
    progress.examples(2, 80)
    assert "left" not in progress.line()
    clock.now = 12
    progress.examples(8, 80)
    assert progress.line().endswith("about 19 min 48 s left")


def test_time_that_belongs_to_no_cell_does_not_lengthen_what_is_left() -> None:
    clock = Clock()
    progress = begun(clock, Share(0, 1), Share(0, 1))
    clock.now = 600
    progress.leave_out(600)
    progress.examples(0, 10)
    clock.now = 605
    progress.examples(5, 10)
    assert progress.line() == "cell 1 of 2: a, 5/10 examples at 1.0/s, about 15 s left"


def test_a_fit_counts_its_own_time_down() -> None:
    """It went up: `1 min left` before a training, `10 min left` at its end."""
    clock = Clock()
    progress = begun(clock, Share(0, 10), Share(30, 10))
    clock.now = 20
    progress.finish_cell()
    progress.start_cell(2, "b")
    shown = []
    for clock.now in (20, 50, 80, 500):
        shown.append(progress.line().rpartition(", ")[2])
    assert shown == ["about 1 min 20 s left", "about 50 s left", "about 20 s left", "about 20 s left"]


def test_cells_whose_rows_lay_there_say_nothing_of_the_pace() -> None:
    """A run that went on told `about 0 s left` before a training of half an hour."""
    clock = Clock()
    progress = begun(clock, Share(0, 10), Share(30, 10))
    progress.examples(10, 10)
    clock.now = 1
    progress.finish_cell()
    progress.start_cell(2, "b")
    assert progress.line() == "cell 2 of 2: b"
    progress.trained(0.1)
    clock.now = 101
    progress.trained(0.2)
    assert progress.line().startswith("cell 2 of 2: b, 20% trained, about 18 min")


def test_a_training_tells_its_share_and_the_time_left_at_its_own_pace() -> None:
    """A lone training of an hour told no time left at all."""
    clock = Clock()
    progress = begun(clock, Share(30, 10))
    assert progress.line() == "cell 1 of 1: a"
    clock.now = 100  # val was read with the untrained model
    progress.trained(0.01)
    assert progress.line() == "cell 1 of 1: a, 1% trained"
    clock.now = 300
    progress.trained(0.51)
    # Steps: 200 s for half of them, so 196 s for the other 49 %. Test: 300 s made 15 shares, so 200 s for its 10.
    assert progress.line() == "cell 1 of 1: a, 51% trained, about 6 min 36 s left"
    progress.examples(0, 10)
    assert "trained" not in progress.line()


def test_a_training_that_goes_on_from_a_checkpoint_counts_from_there() -> None:
    clock = Clock()
    progress = begun(clock, Share(10, 0))
    progress.trained(0.5)
    clock.now = 10
    progress.trained(0.6)
    assert progress.line() == "cell 1 of 1: a, 60% trained, about 40 s left"
    # The cell's second training.
    progress.trained(0.1)
    clock.now = 20
    progress.trained(0.2)
    assert progress.line() == "cell 1 of 1: a, 20% trained, about 1 min 20 s left"


def test_a_plain_stream_gets_a_line_every_ten_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1, stream=stream, clock=clock)
    progress.start_cell(1, "a")
    for second in range(1, 31):
        clock.now = second
        progress.examples(second, 100)
    assert stream.getvalue().count("\n") == 4
    assert "\r" not in stream.getvalue()


def test_a_plain_stream_never_gets_a_line_twice() -> None:
    stream = io.StringIO()
    progress = Progress(2, stream=stream, clock=Clock())
    for cell in ("a", "a", "b"):
        progress.start_cell(1, cell)
        progress.note("trying the prompt formats")
    assert stream.getvalue().splitlines().count("cell 1 of 2: a") == 1
    assert "cell 1 of 2: b" in stream.getvalue()


def test_a_terminal_gets_one_line_that_goes_away() -> None:
    stream = Terminal()
    progress = Progress(1, stream=stream, clock=Clock())
    progress.start_cell(1, "a")
    progress.close()
    assert stream.getvalue() == "\rcell 1 of 1: a\r" + " " * 14 + "\r"


@pytest.mark.parametrize("columns", [80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(theirs, "w", encoding="utf-8") as terminal:
        progress = Progress(8, stream=terminal, clock=Clock())
        progress.start_cell(7, "stdlib_rag retrieved_demos demos=4, n=64, retrieved, bm25 k=2, seed=0")
        progress.note("reading passages")
        shown = os.read(ours, 4096).decode()
        line = progress.line(columns - 1)
    os.close(ours)
    assert "\n" not in shown
    assert max(map(len, shown.split("\r"))) < columns
    assert line.startswith("cell 7 of 8: stdlib_rag retrieved_demos")
    assert line.endswith(", reading passages")


def test_a_warning_stays_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress(1, stream=stream, clock=Clock())
    progress.start_cell(1, "a")
    progress.note("warning: half of it is missing")
    assert stream.getvalue().endswith("\rwarning: half of it is missing\n")


def test_messages_are_wrapped_on_a_terminal_and_whole_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "note: tickets: 6 labels have space around them, such as 'Account '"
    written = {}
    for stream in (Terminal(), io.StringIO()):
        Progress(1, stream=stream, clock=Clock()).note(text)
        written[stream.isatty()] = stream.getvalue()
    assert written[False] == f"{text}\n"
    assert written[True] == "note: tickets: 6 labels have space\n  around them, such as 'Account '\n"


def test_quiet_shows_warnings_alone() -> None:
    stream = io.StringIO()
    progress = Progress(1, stream=stream, enabled=False, clock=Clock())
    progress.start_cell(1, "a")
    progress.examples(1, 2)
    progress.note("training")
    progress.note("warning: half of it is missing")
    assert stream.getvalue() == "warning: half of it is missing\n"


def test_durations_have_two_units() -> None:
    assert [duration(s) for s in (4.4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 5 min"]
