"""bashrac: staged fine-tuning with self-generated tokens (BASH, RAC) and DPO."""

__version__ = "0.1.0"
