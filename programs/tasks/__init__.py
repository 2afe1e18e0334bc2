"""Built-in tasks; the file name is the name in the experiment file."""
