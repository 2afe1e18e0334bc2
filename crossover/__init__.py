"""Compare prompting with fine-tuning on one frozen split, and say which to use at which volume."""


def __getattr__(name: str) -> str:
    # Read when it is asked for: finding the installed distribution takes longer than importing this package.
    if name == "__version__":
        from importlib.metadata import version

        return version("crossover")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
