"""Fit and measure whatever an experiment still lacks."""
