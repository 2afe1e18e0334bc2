"""The judge and the command line."""
