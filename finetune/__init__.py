"""How to adapt in weights; one file is one method."""
