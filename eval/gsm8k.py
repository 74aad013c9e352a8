"""Grading of GSM8K, under the name by which others import it."""

from eval.graders.gsm8k import *  # noqa: F403
