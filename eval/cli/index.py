"""The verb `crossover index`; heavy packages are imported when it runs."""

import sys
from pathlib import Path

import click

from crossover.eval.cli.options import store_option
from crossover.eval.cli.output import echo


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--backend", default="bm25", show_default=True, help="Retrieval backend: bm25, dense, hybrid, weaviate.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the backend.")
@click.option("--chunk-words", type=click.IntRange(0), default=0, help="Cut passages into windows of these many words.")
@click.option("--remove", metavar="NAME", help="Delete collections from a Weaviate server; `*` stands for any text.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@store_option
def index(
    file: Path | None,
    backend: str,
    settings: tuple[str, ...],
    chunk_words: int,
    remove: str | None,
    quiet: bool,
    store: Path,
) -> None:
    """Index a corpus (id, text, perhaps title) ahead of a run; the same command again resumes, or does nothing.

    `--remove` deletes what `crossover ls collections` lists, in place of indexing FILE.

    Example: crossover index handbook --chunk-words 200

    Example: crossover index corpus.jsonl --backend dense
    """
    if (file is None) == (remove is None):
        raise click.UsageError("give either the FILE of a corpus, or --remove with the NAME of a collection")
    from crossover.eval.run.indexing import index_corpus, remove_indexed
    from crossover.eval.run.progress import Progress

    if file is None:
        for name in remove_indexed(str(remove), settings):
            echo(f"removed {name}")
        return
    progress = Progress(stream=sys.stderr, enabled=not quiet)
    try:
        line = index_corpus(
            file, backend=backend, settings=settings, chunk_words=chunk_words, store=store, progress=progress.note
        )
    finally:
        progress.close()
    echo(line)
