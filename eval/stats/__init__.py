"""Statistics: measures, intervals, seeds."""
