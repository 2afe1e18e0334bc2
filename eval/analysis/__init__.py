"""Pure functions from results to arms, contrasts, costs, learning curves, gates and the verdict."""
