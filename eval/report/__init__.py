"""The report of a recipe: what it holds, its words, and its forms."""
