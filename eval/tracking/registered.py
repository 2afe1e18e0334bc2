"""Load a registered arm in MLflow, which copies this file beside the arm and runs it there (models from code)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class RegisteredArm(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow is untyped
    """Answer questions, one a row, as the arm did when it was measured."""

    def load_context(self, context: Any) -> None:
        """Load model, weights and program from the package among the artifacts."""
        from crossover.eval.tracking.package import load_package

        self.answer = load_package(Path(context.artifacts["arm"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return the output fields of each row; a row that failed has its reason in `failure`."""
        return [self._row(row) for row in model_input.to_dict("records")]

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.answer(row)
        except Exception as e:
            return {"failure": f"{type(e).__name__}: {e}"}


mlflow.models.set_model(RegisteredArm())
