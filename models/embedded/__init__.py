"""The small language model that ships with crossover, and the recipe that trained it."""
