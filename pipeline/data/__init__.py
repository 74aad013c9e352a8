"""Rows from outside: read, checked, rendered to tokens."""
