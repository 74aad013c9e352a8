"""Statistics: measures, intervals, p-values over seeds."""
