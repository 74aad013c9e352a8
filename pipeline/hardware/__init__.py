"""Hardware of a step: precision, threads, processes."""
