"""Measure the tables of docs/results.md: `python benchmarks/results.py [--store DIR] [NAME…]`.

Each table is one command; data that cannot be shipped is named by an environment variable, as the example
says. A table whose data is not there keeps what stands in the document. With a store that is kept, what was
interrupted goes on, and what is finished is only printed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from crossover.models.source import weights_source
from crossover.models.weights import folder_sha256

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "results.md"
TABLES = {
    "quickstart": ("crossover run --limit 80 --details", ""),
    "gold": ("crossover run --limit 200 --only zero_shot --set knowledge=[gold] --details", ""),
    "library": ("crossover run benchmarks/experiments/library.yaml --details", ""),
    "banking77": ("crossover run benchmarks/experiments/banking77.yaml --limit 400 --details", "BANKING77"),
    "curves": ("crossover run benchmarks/experiments/curves.yaml --limit 400 --seeds 0 --details", "BANKING77"),
    "early_search": ("python benchmarks/early_search.py $BANKING77", "BANKING77"),
    "knowledge": ("crossover run benchmarks/experiments/knowledge.yaml --limit 200 --details", "SQUAD"),
    "squad": ("crossover run benchmarks/experiments/squad.yaml --limit 300 --details", "SQUAD"),
    "entities": ("crossover run benchmarks/experiments/wnut17.yaml --limit 300 --details", "WNUT17"),
    "translation": ("crossover run benchmarks/experiments/tm_en_de.yaml --details", "TM_EN_DE"),
    "overhead": ("python benchmarks/overhead.py", ""),
    "sft_speed": ("python benchmarks/sft.py --rows 64", ""),
    "start": ("python benchmarks/start.py", ""),
    "many_shot": ("python benchmarks/many_shot.py --questions 32 --few 3", ""),
    "precision": ("python benchmarks/precision.py", ""),
    "recall_squad": ("python benchmarks/recall.py $SQUAD", "SQUAD"),
    "recall_multihop": ("python benchmarks/recall.py $MULTIHOP", "MULTIHOP"),
    "retrieval": ("crossover run benchmarks/experiments/retrieval.yaml --limit 200 --details", "SQUAD"),
    "retrieval_multihop": (
        "crossover run benchmarks/experiments/retrieval_multihop.yaml --limit 60 --details",
        "MULTIHOP",
    ),
    "retrieval_speed": ("python benchmarks/retrieval.py --passages 1000000", ""),
}
WITHOUT_MODEL = {"overhead", "precision", "recall_squad", "recall_multihop", "retrieval_speed"}
HEAD = """# Measured results

Every table came out of the command above it, run by `python benchmarks/results.py`. Dollars price this machine at the
default `machine_hour_usd`. The model is SmolLM2-135M-Instruct, whose weights are `{weights}`; a table that names none
asks no model. SmolLM2 was trained on public text of the web, in which a public benchmark may stand.
"""


def measure(command: str, store: Path) -> str:
    """Return what the command prints; a run keeps its cells in the store."""
    program, *words = os.path.expandvars(command).split()
    words = (
        [sys.executable, *words]
        if program == "python"
        else [str(Path(sys.executable).parent / program), *words, "--store", str(store)]
    )
    text = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return text.partition("\nevery run, row")[0].strip()


@cache
def weights() -> str:
    """Return the hash of the weights of smollm2, 8 hex digits."""
    return folder_sha256(Path(weights_source("smollm2")))[:8]


def read() -> dict[str, str]:
    """Return what the document says below each table's name."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    return dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))


def keep(name: str, table: str) -> None:
    """Put a table into the document, below its command and the weights that it was measured on."""
    command, needed = TABLES[name]
    given = "".join(f"{v}=… " for v in needed.split())
    on = "" if name in WITHOUT_MODEL else f"\nWeights `{weights()}`."
    kept = read() | {name: f"`{given}{command}`{on}\n\n```\n{table}\n```"}
    body = "".join(f"## {n}\n\n{kept[n].strip()}\n\n" for n in TABLES if n in kept)
    DOCUMENT.write_text(f"{HEAD.format(weights=weights())}\n{body.rstrip()}\n", encoding="utf-8")


def main() -> int:
    """Measure the tables that are asked for, all by default, and rewrite the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*TABLES, []])
    parser.add_argument("--store", type=Path, help="keep the cells of runs here")
    flags = parser.parse_args()
    for name in flags.names or TABLES:
        command, needed = TABLES[name]
        if missing := [v for v in needed.split() if not os.environ.get(v)]:
            print(f"{name}: {missing[0]} is not set; the table stays as it is", file=sys.stderr)
            continue
        print(f"{name}: {command}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as passing:
            keep(name, measure(command, flags.store or Path(passing)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
