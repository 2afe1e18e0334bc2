"""The verb `crossover init`; heavy packages are imported when it runs."""

from importlib.resources import files
from pathlib import Path

import click

STARTER = ("crossover.yaml", "train.jsonl", "test.jsonl")


@click.command()
@click.argument(
    "folder", required=False, default=Path(), type=click.Path(path_type=Path, file_okay=False), metavar="[DIR]"
)
def init(folder: Path) -> None:
    """Write a commented experiment file and sample data, ready to run, to be replaced by your own.

    Example: crossover init tickets
    """
    from crossover.models.errors import UserError

    if there := [str(folder / name) for name in STARTER if (folder / name).exists()]:
        raise UserError(f"{', '.join(there)}: already there; give another DIR, `crossover init DIR`")
    folder.mkdir(parents=True, exist_ok=True)
    for name in STARTER:
        (folder / name).write_text(
            (files("crossover.eval.experiment") / "starter" / name).read_text(encoding="utf-8"), encoding="utf-8"
        )
        click.echo(f"wrote {folder / name}")
    go = "" if folder == Path() else f"cd {folder} && "
    click.echo(f"next: {go}crossover validate crossover.yaml && crossover run")
