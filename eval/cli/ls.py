"""The verb `crossover ls`; it imports none of the heavy packages."""

from pathlib import Path

import click

from crossover.eval.cli.options import store_option


@click.command()
@click.argument("what", required=False, type=click.Choice(["tasks", "methods", "models", "programs", "runs"]))
@store_option
def ls(what: str | None, store: Path) -> None:
    """List tasks, methods, models, programs, or the finished runs.

    Example: crossover ls methods
    """
    from crossover.eval.experiment import catalog
    from crossover.models.packaged import PACKAGED, status

    lists = {"tasks": catalog.tasks, "methods": catalog.methods, "programs": catalog.modules}
    for title, read in lists.items():
        if what in (None, title):
            if what is None:
                click.echo(f"{title}:")
            for e in read():
                click.echo(f"  {e.name:<16} {e.summary}")
    if what in (None, "models"):
        if what is None:
            click.echo("models:")
        for name, model in PACKAGED.items():
            click.echo(f"  {name:<16} {model.title}; {status(model)[1]}.")
        click.echo(f"  {'local:FOLDER':<16} Any Hugging Face causal language model, by folder, GGUF file or hub id.")
        click.echo(f"  {'PROVIDER/NAME':<16} Any model that LiteLLM knows: openai/…, anthropic/…, ollama_chat/….")
    if what == "runs":
        from crossover.eval.store.recorded import finished_cell_lines

        for line in finished_cell_lines(store):
            click.echo(line)
