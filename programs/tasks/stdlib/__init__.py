"""The documentation strings that the built-in tasks are made of."""
