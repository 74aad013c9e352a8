"""BASH contexts, under the name by which others import them."""

from pipeline.rows.contexts import *  # noqa: F403
