"""The `bashrac` command."""
