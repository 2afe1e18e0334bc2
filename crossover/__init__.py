"""Compare prompting with fine-tuning on one frozen split, and say which to use at which volume."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossover.eval.run.compared import Compared as Compared
    from crossover.eval.run.compared import compare as compare
    from crossover.eval.run.compared import load as load
    from crossover.eval.run.compared import run as run

PUBLIC = ("Compared", "compare", "load", "run")


def __getattr__(name: str) -> Any:
    # Read when it is asked for: finding the installed distribution takes longer than importing this package.
    if name == "__version__":
        from importlib.metadata import version

        return version("crossover")
    if name in PUBLIC:
        from importlib import import_module

        return vars(import_module("crossover.eval.run.compared"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
