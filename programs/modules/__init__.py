"""DSPy modules that a task adapts; the file name is the name in the experiment file."""
