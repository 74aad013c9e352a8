"""Models: locating, trust checks, loading, quantisation."""
