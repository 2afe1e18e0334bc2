"""MLflow: what it shows of a run, how that gets there, and an arm as a package that others load."""
