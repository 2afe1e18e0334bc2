"""Read rows from the bytes of a file: CSV of any delimiter, JSON, JSON lines, Excel and parquet, in any encoding."""

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from crossover.models.errors import UserError
from crossover.programs.records import Problem, Record, fault, parsed_json

BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
LEGACY_ENCODINGS = ["cp1252", "cp1250", "cp1251", "cp1253", "gb18030", "shift_jis", "euc_kr"]
"""Encodings to choose from where a text is not UTF-8; given more, a detector takes short texts for rare ones."""
DELIMITERS = ",;\t|"
ROWS_LOOKED_AT = 100
"""Rows from which the delimiter is told."""

MOST_UNPACKED = 1_000_000_000
"""Bytes of the parts of a workbook, which may be packed a thousand times as small."""

Rows = Iterator[Record | Problem]


def encoding_of(data: bytes) -> str:
    """Return the encoding of a text: by its byte order mark, UTF-8 where that fits, else by its letters.

    Raises:
        UserError: no encoding fits.
    """
    from charset_normalizer import from_bytes

    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    if b"\0" in data[:1000]:
        return "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as e:
        matches = list(from_bytes(data, cp_isolation=LEGACY_ENCODINGS))
        if not matches:
            raise UserError(f"the encoding of the text is unknown: {e}") from e
        equal = {name for m in matches if m.chaos == matches[0].chaos for name in m.could_be_from_charset}
        return "cp1252" if "cp1252" in equal else matches[0].encoding
    return "utf-8"


def _decoded(data: bytes, shown: str) -> tuple[str, list[Problem]]:
    """Return the text, and a warning where its encoding is a guess."""
    encoding = encoding_of(data)
    doubt = [Problem("warning", shown, f"not UTF-8, read as {encoding}", "save it as UTF-8 if letters come out wrong")]
    return data.decode(encoding), doubt if encoding in LEGACY_ENCODINGS else []


def read_csv(data: bytes, shown: str) -> Rows:
    """Yield a record or a problem for each row below the header; the delimiter is one of `DELIMITERS`."""
    text, doubt = _decoded(data, shown)
    yield from doubt
    first, _, rest = text.partition("\n")
    named = first.strip().lower()
    if named.startswith("sep=") and len(named) == 5:  # Excel's own way to name the delimiter
        text, delimiter, skipped = rest, named[-1], 1
    else:
        delimiter, skipped = delimiter_of(text), 0
    yield from _under_header(_cells(text, delimiter, skipped), shown)


def delimiter_of(text: str) -> str:
    """Return the delimiter that cuts the most rows into as many cells as the header; a comma where none does."""
    best, most = ",", (0.0, 0)
    for delimiter in DELIMITERS:
        reader, widths = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), list[int]()
        try:
            for cells in reader:
                widths += [len(cells)] if cells else []
                if len(widths) > ROWS_LOOKED_AT:
                    break
        except csv.Error:
            pass
        if widths and widths[0] > 1:
            score = (widths.count(widths[0]) / len(widths), widths[0])
            best, most = (delimiter, score) if score > most else (best, most)
    return best


def _cells(text: str, delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank with the line on which it starts."""
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # documents may be longer than its 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    for cells in reader:
        if cells:
            yield line + skipped, cells
        line = reader.line_num + 1


def _under_header(rows: Iterable[tuple[int, Sequence[str]]], shown: str) -> Rows:
    """Yield the rows below the first one, whose cells name the columns; a nameless column is `column N`."""
    header: list[str] | None = None
    for line, cells in rows:
        where = f"{shown}:{line}"
        if header is None:
            header = [name.strip() or f"column {n}" for n, name in enumerate(cells, 1)]
            for name in sorted({n for n in header if header.count(n) > 1}):
                yield fault(where, f"{header.count(name)} columns are named {name!r}", "give each a name of its own")
        elif len(cells) == len(header):
            yield Record(dict(zip(header, cells, strict=True)), where)
        else:
            remedy = "quote cells that hold the delimiter"
            yield fault(where, f"{len(cells)} cells under {len(header)} columns", remedy)


def read_xlsx(data: bytes, shown: str) -> Rows:
    """Yield one record for each row below the header of the first sheet that has rows; `file:row` as Excel counts."""
    import openpyxl

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if (size := sum(part.file_size for part in archive.infolist())) > MOST_UNPACKED:
            raise ValueError(f"{size / 1e9:.1f} GB once it is unpacked")
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    sheets = [s for s in book.worksheets if any(any(v is not None for v in r) for r in s.iter_rows(values_only=True))]
    for other in sheets[1:]:
        yield Problem("warning", shown, f"sheet {other.title!r} is not read", "save it as a file of its own if needed")
    if sheets:
        rows = ((n, [_cell(v) for v in r]) for n, r in enumerate(sheets[0].iter_rows(values_only=True), 1))
        yield from _under_header(_trimmed((n, r) for n, r in rows if any(r)), shown)
    book.close()


def _trimmed(rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows as wide as the header: Excel keeps empty columns that were once formatted."""
    width = 0
    for line, cells in rows:
        width = width or max(n for n, c in enumerate(cells, 1) if c)
        beyond = max((n for n, c in enumerate(cells, 1) if c), default=0)
        yield line, (cells + [""] * width)[: max(width, beyond)]


def _cell(value: Any) -> str:
    """Return a cell of a sheet as text: whole numbers without a point, dates without a midnight."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).removesuffix(" 00:00:00")


def read_jsonl(data: bytes, shown: str) -> Rows:
    """Yield a record or a problem for each line that is not blank."""
    text, doubt = _decoded(data, shown)
    yield from doubt
    # Not splitlines, which also splits at U+2028 and others that may stand in a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{shown}:{number}"
        if not line.strip():
            continue
        try:
            values = parsed_json(line)
        except json.JSONDecodeError as e:
            yield fault(where, f"not valid JSON: {e.msg} at column {e.colno}", "fix or delete the line")
            continue
        if isinstance(values, dict):
            yield Record(values, where)
        else:
            yield fault(where, f"a {type(values).__name__}, not an object", "write one {…} a line")


def read_json(data: bytes, shown: str) -> Rows:
    """Yield the objects of a list, or of the longest list of objects in an object; JSON lines are read as such."""
    text, doubt = _decoded(data, shown)
    try:
        whole = parsed_json(text)
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":
            yield from read_jsonl(data, shown)
        else:
            yield fault(f"{shown}:{e.lineno}", f"not valid JSON: {e.msg} at column {e.colno}", "correct the file")
        return
    yield from doubt
    lists = [v for v in (whole.values() if isinstance(whole, dict) else [whole]) if isinstance(v, list) and v]
    rows = max((v for v in lists if all(isinstance(r, dict) for r in v)), key=len, default=None)
    if rows is None and isinstance(whole, dict) and whole:
        rows = [whole]
    if rows is None:
        yield fault(shown, "no list of objects", "write [{…}, {…}], or one {…} a line")
    for number, values in enumerate(rows or [], 1):
        yield Record(values, f"{shown}:{number}")


def read_parquet(data: bytes, shown: str) -> Rows:
    """Yield one record for each row."""
    from pyarrow import parquet

    for number, values in enumerate(parquet.read_table(io.BytesIO(data)).to_pylist(), 1):
        yield Record(values, f"{shown}:{number}")


READERS = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".xlsx": read_xlsx,
    ".parquet": read_parquet,
}
"""Suffix to reader; each may also be followed by `.gz`."""
