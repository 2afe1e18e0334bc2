"""Methods that adapt a program in context; one file is one method."""
