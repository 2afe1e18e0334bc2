"""What an experiment is, how its file is read, how its data is split, and the catalogue of what it can name."""
