"""Graders: pure functions from texts to scores."""
