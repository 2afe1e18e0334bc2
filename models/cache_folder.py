"""Name the user's cache folder."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Return the folder that keeps models: CROSSOVER_CACHE, else the one that the system gives to caches."""
    return Path(os.environ.get("CROSSOVER_CACHE") or platformdirs.user_cache_dir("crossover", appauthor=False))
