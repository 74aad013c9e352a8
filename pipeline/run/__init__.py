"""Runs a plan: schedules steps, launches processes, shows how far they are."""
