"""Methods that adapt a model in weights; one file is one method."""
