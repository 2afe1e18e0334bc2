"""Measure the cells of a run on other processes and machines: Ray tasks, Slurm jobs."""
