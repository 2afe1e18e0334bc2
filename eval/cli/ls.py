"""The verb `crossover ls`; it imports none of the heavy packages."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.options import store_option
from crossover.eval.cli.output import echo

if TYPE_CHECKING:
    from crossover.eval.experiment import catalog

LISTS = ("tasks", "methods", "models", "programs", "runs", "collections")
BUDGET = {"metric_calls": "int | None", "usd": "float | None"}
"""Fields of `SearchBudget`, whose module would load DSPy."""


@click.command()
@click.argument("what", required=False, metavar=f"[{'|'.join(LISTS)}|METHOD]")
@click.option("--markdown", is_flag=True, help="Print every method with its options, as in docs/reference.md.")
@store_option
def ls(what: str | None, markdown: bool, store: Path) -> None:
    """List tasks, methods, models, programs or the finished runs; of one METHOD its options, defaults and meaning.

    `collections` lists what crossover has stored on the Weaviate server of WEAVIATE_URL.

    Example: crossover ls runs

    Example: crossover ls sft
    """
    from crossover.eval.experiment import catalog

    if markdown:
        echo(reference(), nl=False)
        return
    if what is not None and what not in LISTS:
        for line in _method_lines(what):
            echo(line)
        return
    for title, read in {"tasks": catalog.tasks, "methods": catalog.methods, "programs": catalog.modules}.items():
        if what in (None, title):
            if what is None:
                echo(f"{title}:")
            for e in read():
                echo(f"  {e.name:<16} {e.summary}")
    if what in (None, "models"):
        _list_models(title=what is None)
    if what == "runs":
        from crossover.eval.store.recorded import finished_cell_lines

        for line in finished_cell_lines(store):
            echo(line)
    if what == "collections":
        _list_collections()


def _list_collections() -> None:
    """Print the collections on the Weaviate server, with what they hold."""
    from crossover.programs.retrieval.weaviate import Weaviate
    from crossover.programs.retrieval.weaviate_requests import DEMOS, list_collections

    address = Weaviate().address
    names = list_collections(address)
    for name in names:
        echo(f"  {name:<40} {'Demonstrations.' if name.startswith(DEMOS) else 'Passages.'}")
    if not names:
        echo(f"no collection of crossover on {address}", err=True)


def _list_models(*, title: bool) -> None:
    """Print the models that can be named."""
    from crossover.models.packaged import PACKAGED, status

    if title:
        echo("models:")
    for name, model in PACKAGED.items():
        echo(f"  {name:<16} {model.title}; {status(model)[1]}.")
    echo(f"  {'local:FOLDER':<16} Any Hugging Face causal language model, by folder, GGUF file or hub id.")
    echo(f"  {'vllm:MODEL':<16} Any of these, served by vLLM: a server that is started here, or at `api_base`.")
    echo(f"  {'PROVIDER/NAME':<16} Any model that LiteLLM knows: openai/…, anthropic/…, ollama_chat/….")


def _method_lines(name: str) -> list[str]:
    """Return a method's summary and a line for each of its options: name, default, type and meaning."""
    from crossover.eval.experiment import catalog

    known = {m.name: m for m in catalog.methods()}
    if name not in known:
        near = difflib.get_close_matches(name, [*LISTS, *known], n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"use one of {', '.join([*LISTS, *known])}"
        raise click.UsageError(f"nothing is named `{name}`; {hint}")
    lines = [f"{name}: {known[name].summary}"]
    for o in _options(known[name]):
        lines += [f"  {o.name}: {o.default}  ({o.type})", *([f"      {o.meaning}"] if o.meaning else [])]
    return lines


def _options(method: "catalog.Entry") -> "list[catalog.Option]":
    """Return a method's options; one that searches takes a budget of its own too."""
    from crossover.eval.experiment import catalog

    own = catalog.described_options(method)
    if not catalog.traits(method.name).searches:
        return own
    meaning = "A budget of its own, in place of the experiment's `budget`."
    return [*own, *(catalog.Option(n, t, "None", meaning) for n, t in BUDGET.items())]


def reference() -> str:
    """Return docs/reference.md: every method with its options, from the same source as `crossover ls METHOD`."""
    from crossover.eval.experiment import catalog

    lines = ["# Methods and their options", "", "Written by `crossover ls --markdown > docs/reference.md`.", ""]
    for method in catalog.methods():
        lines += [f"## {method.name}", "", method.summary, ""]
        rows = [f"| `{o.name}` | `{o.default}` | `{o.type}` | {o.meaning} |" for o in _options(method)]
        rows = [row.replace(" | None`", " \\| None`") for row in rows]
        lines += [
            *(["| option | default | type | meaning |", "|---|---|---|---|", *rows] if rows else ["No options."]),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"
