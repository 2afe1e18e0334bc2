"""The model of the tests: a Llama of 4.7 million parameters that learns from its prompt and from gradient steps."""

from pathlib import Path

FOLDER = Path(__file__).parent / "tiny_model"
NAME = f"local:{FOLDER}"
"""Its name in an experiment file."""
