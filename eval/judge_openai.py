"""Judges behind an endpoint, under the module name that other code imports."""

from eval.judge.openai import *  # noqa: F403
