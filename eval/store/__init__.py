"""What is kept on disk: cells, rows, locks."""
