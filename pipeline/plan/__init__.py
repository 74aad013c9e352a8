"""From a recipe to the steps it needs."""
