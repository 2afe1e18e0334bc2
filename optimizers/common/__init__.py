"""Shared by the in-context methods: the search on val, nearest demonstrations, the room in the context."""
