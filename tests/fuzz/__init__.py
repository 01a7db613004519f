"""Coverage-guided fuzzing of what strangers' bytes reach first; see `__main__` for the command."""
