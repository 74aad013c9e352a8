"""A step: what it is, what it is given, what it leaves."""
