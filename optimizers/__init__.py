"""How to adapt in context; one file is one method."""
