"""Take the pictures of the documents: the first screen of a page that `crossover run` wrote.

crossover run && python benchmarks/pictures.py quickstart.html docs/page.png
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import chromium

WIDTH, HEIGHT = 1180, 965


def main(page: Path, picture: Path = Path("docs/page.png")) -> None:
    """Write the first screen of a page as a PNG."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.open(page, width=WIDTH, height=HEIGHT)
        browser.screenshot(picture, whole=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
