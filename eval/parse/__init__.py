"""Read an experiment file, every fault at once."""
