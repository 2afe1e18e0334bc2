"""What in-context methods share: the search budget, nearest demonstrations, teacher context."""
