"""Rows that a model writes: contexts, answers, corrections, pairs."""
