"""MLflow: what it is told, and what happens when it does not listen."""
