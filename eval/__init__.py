"""Graders, result types and statistics: what turns stored samples into numbers."""
