"""What a plan needs before it runs: tokens, memory, time, money."""
