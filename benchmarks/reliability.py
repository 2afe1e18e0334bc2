"""Attack crossover as the tests do, and write the table of docs/reliability.md from their own counts.

`make nightly` runs `python -m benchmarks.reliability`, which takes up to an hour. Words after it choose the attacks
whose names hold one of them, such as `kill`, and leave the other rows as they are. It ends with 1 if an attack
succeeded, and with 2 if a nightly test stands in no row or a row has no test.
"""

import re
import sys
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.section import write_section

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
COLUMNS = ("lost", "doubled", "leaked", "unbounded", "untyped")


@dataclass(frozen=True)
class Attack:
    """A row of the table."""

    name: str
    columns: str
    """The columns, separated by spaces, that its tests hold at 0."""
    tests: tuple[str, ...]
    """The beginnings of the tests' names: FILE, or FILE::TEST."""


ATTACKS = (
    Attack("kill -9 at a random moment of a run, twice", "lost doubled", ("test_crash::test_kills_by_the_dozen",)),
    Attack(
        "kill -9 or Ctrl-C at a random moment of a training",
        "lost doubled",
        ("test_crash::test_killed_trainings", "test_crash::test_a_killed_training"),
    ),
    Attack(
        "kill -9, SIGTERM or Ctrl-C twice while a slow row is waited for",
        "lost doubled",
        ("test_faults::test_a_run_that_is_ended",),
    ),
    Attack("kill -9 in a MIPRO or GEPA search", "lost doubled", ("test_search_crash",)),
    Attack("kill -9 of an export", "lost untyped", ("test_export::test_a_killed_export",)),
    Attack(
        "a full or read-only disk",
        "lost doubled untyped",
        (
            "test_faults::test_a_full_disk",
            "test_faults::test_a_verb_that_finds_no_room",
            "test_faults::test_a_read_only",
        ),
    ),
    Attack(
        "stored rows, results, adapters that are torn or changed",
        "lost untyped",
        (
            *("test_faults::test_a_damaged", "test_faults::test_a_torn_row", "test_faults::test_a_finished_cell"),
            *("test_faults::test_a_corrupt_adapter", "test_rows::test_a_torn_line", "test_export::test_weights_that"),
        ),
    ),
    Attack(
        "a provider that fails in 30 % of its answers, under a limit in dollars, 16 at once",
        "unbounded",
        ("test_spending::test_no_limit_is_exceeded",),
    ),
    Attack(
        "a server that fails now and then: 429, 500, broken and unreadable answers",
        "lost doubled",
        ("test_served::test_a_run_through_faults", "test_remote::test_every_fault_is_retried"),
    ),
    Attack("absurd, missing or negative usage", "unbounded untyped", ("test_spending::test_tokens_that_cannot_be",)),
    Attack("a wrong key, an unknown model, a used-up quota", "lost unbounded", ("test_outage",)),
    Attack("a provider that drips, refuses for ever, asks to wait an hour", "unbounded", ("test_time",)),
    Attack("Ctrl-C and limits in the middle of calls", "lost unbounded", ("test_limits",)),
    Attack("a program that searches by itself, ever more", "unbounded", ("test_passages::test_a_question_more",)),
    Attack(
        "keys in urls, echoed in answers, in errors",
        "leaked",
        (
            *("test_remote::test_no_key_stands", "test_remote::test_a_key_in_the_file", "test_remote::test_keys_are"),
            *("test_remote::test_a_provider_key", "test_hostile::test_a_fault_of_ours"),
        ),
    ),
    Attack(
        "names and keys in stored files that lead elsewhere",
        "leaked untyped",
        ("test_faults::test_no_name", "test_faults::test_a_key_read"),
    ),
    Attack(
        "markers, terminal commands, pickles, code of models",
        "leaked",
        (
            *("test_hostile::test_an_answer", "test_hostile::test_data_opens", "test_hostile::test_nothing_is"),
            *("test_hostile::test_control", "test_hostile::test_a_folder", "test_hostile::test_names_and_data"),
        ),
    ),
    Attack(
        "MLflow deleted, moved, copied, refusing, killed",
        "lost doubled untyped",
        ("test_sync", "test_tracking::test_a_database_that"),
    ),
    Attack(
        "a Weaviate server that restarts, refuses objects, goes away",
        "lost doubled unbounded",
        (
            *("test_weaviate::test_a_server_that", "test_weaviate::test_an_import", "test_weaviate::test_a_search"),
            *("test_weaviate::test_a_refused", "test_weaviate::test_objects_refused"),
        ),
    ),
    Attack("made-up experiment files, rows and data", "untyped", ("test_fuzz",)),
    Attack("experiment files, settings and arguments of every bad kind", "untyped unbounded", ("test_bad_files",)),
    Attack("data and score files of every bad kind", "untyped unbounded", ("test_bad_data",)),
    Attack("damaged folders of models", "untyped unbounded leaked", ("test_bad_models",)),
)


@dataclass
class Tally:
    """A plugin of pytest that runs the tests of some attacks alone, and counts tries and failures by attack."""

    attacks: list[Attack]
    tries: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    unnamed: list[str] = field(default_factory=list)
    """Nightly tests that stand in no row."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out the tests of no attack."""
        self.unnamed = [i.nodeid for i in items if i.get_closest_marker("nightly") and not attack_of(i.nodeid)]
        items[:] = [i for i in items if attack_of(i.nodeid) in self.attacks]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Count a test: by its property `tries`, by the examples that Hypothesis made up, else once."""
        report = yield
        attack = attack_of(item.nodeid)
        if attack is not None:
            self.seconds[attack.name] += report.duration
        if attack is not None and (report.when == "call" or report.failed):
            examples = re.findall(r"(\d+) passing", str(vars(item).get("hypothesis_statistics", "")))
            counts = [int(str(n)) for name, n in item.user_properties if name == "tries"] or [int(n) for n in examples]
            self.tries[attack.name] += sum(counts) or 1
            self.failed[attack.name] += report.failed
        return report


def attack_of(test: str) -> Attack | None:
    """Return the attack that a test belongs to, None if it belongs to none."""
    name = test.removeprefix("tests/").replace(".py", "", 1)
    return next((a for a in ATTACKS if name.startswith(a.tests)), None)


def row(attack: Attack, tally: Tally) -> str:
    """Return the row of an attack."""
    counts = [str(tally.failed[attack.name]) if c in attack.columns.split() else "–" for c in COLUMNS]
    files = ", ".join(sorted({f"`{test.partition('::')[0]}.py`" for test in attack.tests}))
    measured = [attack.name, f"{tally.tries[attack.name]:,}", *counts, f"{tally.seconds[attack.name]:.0f}", files]
    return f"| {' | '.join(measured)} |"


def main(words: list[str]) -> int:
    """Run the attacks, and write their rows into the page."""
    chosen = [a for a in ATTACKS if not words or any(word in a.name for word in words)]
    tally = Tally(chosen)
    code = pytest.main(["-m", "", "-q", "-p", "no:xdist", str(PAGE.parent.parent / "tests")], [tally])
    if tally.unnamed:
        print("nightly tests that stand in no row of benchmarks/reliability.py:", *tally.unnamed, sep="\n")
        return 2
    if untried := [a.name for a in chosen if not tally.tries[a.name]]:
        print("rows without a test:", *untried, sep="\n")
        return 2
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    rows |= {a.name: row(a, tally) for a in chosen}
    header = f"| attack | tries | {' | '.join(COLUMNS)} | seconds | held by |"
    header += f"\n|---|{'---:|' * (len(COLUMNS) + 2)}---|"
    write_section("reliability", "\n".join([header, *(rows[a.name] for a in ATTACKS if a.name in rows)]), PAGE)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
