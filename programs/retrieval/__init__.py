"""Retrieval backends; one file is one backend."""
