"""One file a benchmark: its keys, its steps, its grading."""
