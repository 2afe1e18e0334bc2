"""Language models that every method runs on, their prompt formats, usage and limits."""
