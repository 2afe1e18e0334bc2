"""Retrieval backends, one file each (bm25, dense, hybrid, weaviate), and their shared code."""
