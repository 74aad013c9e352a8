"""Judges behind an endpoint, under the name by which others import them."""

from eval.judge.openai import *  # noqa: F403
