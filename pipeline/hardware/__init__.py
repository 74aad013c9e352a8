"""What the machine gives: precision, threads, processes."""
