"""What is adapted: tasks, DSPy modules, metrics and retrieval."""
