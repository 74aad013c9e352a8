"""One file a method: its keys, what it checks, the steps it plans, and how they are made."""
