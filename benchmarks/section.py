"""Keep measured text inside a document between `<!-- name:begin -->` and `<!-- name:end -->`."""

from pathlib import Path

METHOD = Path(__file__).parent.parent / "docs" / "method.md"


def write_section(name: str, text: str, file: Path = METHOD) -> None:
    """Replace what stands between the markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = file.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{file}: no section {begin} … {end}")
    file.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table, the first column to the left, the others to the right."""
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
