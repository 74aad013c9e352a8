"""Training with TRL's stock trainers."""
