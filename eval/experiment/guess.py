"""Guess a task from a data file: which columns are read, which are answered, by which program and metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import dspy

from crossover.eval.experiment.choices import Choices
from crossover.eval.experiment.columns import GROUP_WORDS, INPUT_WORDS, OUTPUT_WORDS, Column, columns_in
from crossover.models.errors import UserError
from crossover.programs.fields import answers_of, text_of
from crossover.programs.kinds import CODE
from crossover.programs.load import is_reference, load_object, unknown
from crossover.programs.records import Record
from crossover.programs.spec import TaskSpec

ROLES = ("input", "output", "id", "group", "gold", "ignored")
SHORT_ANSWER = 5
"""Words up to which an answer is compared whole."""
CHARACTERS_A_TOKEN, TOKENS_A_FIELD = 2, 16
"""Fewer characters than most texts have, and room for the field's name, so that no answer is cut off."""
ENOUGH_TESTED = 55
"""Test rows from which a verdict is reached; a few more than the judge asks for, since a split is never exact."""
TEST_SHARES, SMALL_TEST_SHARE, VAL_SHARE = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5), 0.3, 0.1
"""Shares of test, of which the least that gives enough rows is taken, and that of a file too small for any."""
REASONING_TOKENS = 256
"""For a program of the user's, which may write more than its answer."""


@dataclass(frozen=True)
class Guess:
    """A data file taken for a task."""

    columns: tuple[Column, ...]
    program: str
    why: str
    """Reason for the program."""
    metric: str
    """Empty for the program's usual one."""
    max_tokens: int
    split: Mapping[str, float]
    """Shares of val and of test."""
    docs: str = ""
    model: str = "smollm2"
    by_role: Mapping[str, list[str]] = field(default_factory=dict)

    def spec(self, name: str, data: Mapping[str, str]) -> TaskSpec:
        """Return the task; relative paths start where the data lies."""
        return TaskSpec(
            name,
            self.program,
            data,
            split=self.split,
            fields={c.name: c.role for c in self.columns if c.role in ("id", "gold", "ignored")},
            input=tuple(self.by_role["input"]),
            output=dict.fromkeys(self.by_role["output"], ""),
            metric=self.metric,
            corpus=self.docs,
            cluster=next(iter(self.by_role["group"]), ""),
        )


def guess(records: Sequence[Record], choices: Choices, *, passages: Sequence[str] = (), base: Path = Path()) -> Guess:
    """Return what the rows look like, as far as `choices` leaves it open.

    Args:
        records: The rows of the file, at least one.
        choices: The parts that are settled.
        passages: The ids of the passages, by which a column of gold passages is known.
        base: The folder where the path of a user's program starts.

    Raises:
        UserError: a column does not exist, or no input or output can be told.
    """
    columns = columns_in(records)
    known = {c.name.casefold(): c.name for c in columns}

    def named(names: Sequence[str]) -> tuple[str, ...]:
        if missing := next((n for n in names if n.casefold() not in known), None):
            raise unknown("column", missing, [c.name for c in columns])
        return tuple(n if n in known.values() else known[n.casefold()] for n in names)

    own = _fields_of(choices.program, base) if is_reference(choices.program) else ([], [])
    choices = replace(
        choices,
        input=named(choices.input) or tuple(c.name for c in columns if c.name in own[0]),
        output=named(choices.output) or tuple(c.name for c in columns if c.name in own[1]),
        ignore=named(choices.ignore),
        group="".join(named([choices.group] if choices.group else [])),
    )
    _give_roles(columns, choices, records, passages)
    return settled(columns, records, choices)


def _fields_of(reference: str, base: Path) -> tuple[list[str], list[str]]:
    """Return the input and the output fields of the user's program."""
    program = load_object(reference, base=base)()
    predictors = program.predictors() if isinstance(program, dspy.Module) else []
    outputs = [n for p in predictors for n in p.signature.output_fields]
    return [n for p in predictors for n in p.signature.input_fields if n not in outputs], outputs


def _give_roles(
    columns: Sequence[Column], choices: Choices, records: Sequence[Record], passages: Sequence[str]
) -> None:
    """Give each column its role."""
    free = []
    for column in columns:
        fixed = {choices.group: "group"} | dict.fromkeys(choices.ignore, "ignored")
        fixed |= dict.fromkeys(choices.output, "output") | dict.fromkeys(choices.input, "input")
        if column.name in fixed:
            column.role = fixed[column.name]
        elif passages and _names_passages([r.values.get(column.name) for r in records], set(passages)):
            column.role = "gold"
        elif column.kind == "id" and not any(c.role == "id" for c in columns):
            column.role = "id"
        elif column.kind not in ("date", "empty", "group", "id", "object"):
            free.append(column)
    if not choices.output and free:
        likely = [*enumerate(free)]
        _, best = max(likely, key=lambda c: (_answers(c[1]), c[0]))
        best.role = "output"
    if not choices.input:
        rest = [c for c in free if c.role != "output" and not GROUP_WORDS.search(c.words)]
        texts = [c for c in rest if c.kind == "text"] or rest
        for column in [c for c in rest if INPUT_WORDS.search(c.words)] or texts:
            column.role = "input"


def _answers(column: Column) -> int:
    """Return how much a column looks like answers."""
    named = 2 * bool(OUTPUT_WORDS.search(column.words)) - bool(INPUT_WORDS.search(column.words))
    return named + (column.kind in ("label", "yes/no", "spans"))


def _names_passages(values: Sequence[object], passages: set[str]) -> bool:
    """Return whether nearly all values name passages."""
    filled = [text_of(v).strip() for v in values if text_of(v).strip()]
    return len(filled) > 0 and sum(v in passages for v in filled) > 0.9 * len(filled)


def settled(columns: Sequence[Column], records: Sequence[Record], choices: Choices) -> Guess:
    """Return the guess for columns whose roles are given.

    Raises:
        UserError: there is no input or no output.
    """
    by_role = {role: [c.name for c in columns if c.role == role] for role in ROLES}
    for role in ("input", "output"):
        if not by_role[role]:
            names = ", ".join(c.name for c in columns)
            raise UserError(f"no column looks like the {role} among {names}; add --{role} COLUMN")
    outputs = [c for c in columns if c.role == "output"]
    answers = [text_of(a) for r in records for c in outputs for a in answers_of(r.values.get(c.name))]
    program, why = _program(outputs, choices)
    return Guess(
        tuple(columns),
        program,
        why,
        choices.metric or _metric(program, answers),
        _max_tokens(program, answers, len(outputs)),
        _split(len(records)),
        choices.docs,
        choices.model or "smollm2",
        by_role,
    )


def _program(outputs: Sequence[Column], choices: Choices) -> tuple[str, str]:
    """Return the program for the outputs, and why it is that one."""
    if choices.program:
        return choices.program, "your own" if is_reference(choices.program) else "--program"
    first = outputs[0]
    if len(outputs) > 1:
        return "record", f"{len(outputs)} outputs"
    if choices.docs:
        return "rag", f"answers from {choices.docs}"
    if first.kind == "spans":
        return "extract", f"{first.name} holds spans"
    if first.kind in ("label", "yes/no"):
        return "classify", f"{first.name} has {first.distinct} labels"
    return "answer", f"{first.name} has {first.distinct} different answers"


def _metric(program: str, answers: Sequence[str]) -> str:
    """Return the metric for free answers; empty for a program with a usual one."""
    if program not in ("answer", "rag"):
        return ""
    texts = [a.strip() for a in answers]
    if all(t.lstrip("-").replace(".", "", 1).isdecimal() and not CODE.fullmatch(t) for t in texts):
        return "numeric_match"
    # Asked about a document, a model answers in a sentence: as in SQuAD, what it shares with the answer counts.
    short = median(len(a.split()) for a in answers) <= SHORT_ANSWER
    return "exact_match" if short and program == "answer" else "token_f1"


def _max_tokens(program: str, answers: Sequence[str], outputs: int) -> int:
    """Return how many tokens an answer may take."""
    if is_reference(program):
        return REASONING_TOKENS
    longest = max(map(len, answers), default=0) // CHARACTERS_A_TOKEN
    return min(512, outputs * max(TOKENS_A_FIELD, longest + (TOKENS_A_FIELD if outputs > 1 else 0)))


def _split(rows: int) -> dict[str, float]:
    """Return the shares of val and test for so many rows."""
    enough = (share for share in TEST_SHARES if rows * share >= ENOUGH_TESTED)
    return {"val": VAL_SHARE, "test": next(enough, SMALL_TEST_SHARE)}
