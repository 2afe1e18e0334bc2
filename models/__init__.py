"""Language models that every method runs on, and the prompt frames they speak."""
