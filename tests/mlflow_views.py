"""Open MLflow's own pages of a run in a browser, by the clicks of docs/mlflow.md, for tests and pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from browser import Page

from crossover.eval.tracking.addresses import VIEW, charts_address

PATIENCE = 120.0
"""Seconds for a page, of which the browser loads the largest parts anew after every start."""


def shows(*words: str) -> str:
    """Return a script that is true once the page shows all words."""
    return f"{json.dumps(words)}.every(w => document.body && document.body.innerText.includes(w))"


@dataclass(frozen=True)
class Views:
    """One experiment in a browser; every method returns the text of the page once the page shows what it is for."""

    page: Page
    server: str
    experiment: str
    """MLflow's id of the experiment."""

    def charts(self, arms: int) -> str:
        """Open the page that `crossover ui` names, and wait for two bars of every arm."""
        bars = f"document.querySelectorAll('.js-plotly-plot .bars .point').length >= {2 * arms}"
        return self._see(charts_address(self.server, self.experiment), bars, height=1130)

    def table(self, *names: str) -> str:
        """Open the runs as a table that shows these names."""
        return self._see(
            f"{self._experiment}/runs?viewStateShareKey={VIEW}", shows("accuracy_high", *names), height=700
        )

    def run(self, run_id: str, *words: str) -> str:
        """Open a run."""
        return self._see(f"{self._experiment}/runs/{run_id}", shows("About this run", *words))

    def artifacts(self, run_id: str) -> str:
        """Open the artifacts of a run."""
        return self._see(f"{self._experiment}/runs/{run_id}/artifacts", shows("rows.json", "program"))

    def traces(self, run_id: str, *, beside: str = "", words: Sequence[str] = ()) -> str:
        """Open the traces of a run as evaluations, beside those of another run where one is named."""
        # The tab's own address: the page draws the tab anew after it was clicked, and may lose the click.
        other = f"?compareToRunUuid={beside}" if beside else ""
        return self._see(f"{self._experiment}/runs/{run_id}/traces{other}", shows("Request", "score", "AVG", *words))

    def trace(self, trace_id: str) -> str:
        """Open a trace with its spans."""
        return self._see(
            f"{self._experiment}/traces?selectedEvaluationId={trace_id}", shows("parse", "model"), height=560
        )

    def compare(self, run_ids: Sequence[str]) -> str:
        """Open the view that compares runs."""
        runs, experiments = (quote(json.dumps(ids)) for ids in (list(run_ids), [self.experiment]))
        url = f"{self.server}/#/compare-runs?runs={runs}&experiments={experiments}"
        return self._see(url, shows(f"Comparing {len(run_ids)} Runs", "accuracy_high", "crossover.kind"), height=1130)

    def differences(self) -> str:
        """Leave to the view that compares runs the lines in which they differ: it draws the first lines alone."""
        self.page.run("document.querySelectorAll('[role=switch], input[type=checkbox]').forEach(e => e.click())")
        # The plots stand above.
        return self.click("Visualizations", "latency_p95_ms")

    def click(self, text: str, *words: str) -> str:
        """Click the last link or tab of exactly this text, once it is there, and wait until the page shows the words.

        The first ones are those of the path and of the navigation beside it.
        """
        elements = "[...document.querySelectorAll('a, button, [role=tab], [role=button]')]"
        named = f"{elements}.filter(e => e.innerText.trim() === {json.dumps(text)}).at(-1)"
        self.page.wait(named, seconds=PATIENCE)
        self.page.run(f"{named}.click()")
        self.page.wait(shows(*words), seconds=PATIENCE)
        return self.text()

    def text(self) -> str:
        """Return the text that the page shows."""
        return str(self.page.run("document.body.innerText"))

    @property
    def _experiment(self) -> str:
        return f"{self.server}/#/experiments/{self.experiment}"

    def _see(self, url: str, until: str, *, height: int = 950) -> str:
        self.page.visit(url, until, height=height, seconds=PATIENCE)
        return self.text()
