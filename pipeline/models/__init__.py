"""Models: found, trusted, loaded, quantised."""
