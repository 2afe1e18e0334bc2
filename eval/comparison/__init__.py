"""From results to arms, differences, costs and doubts; no model is called."""
