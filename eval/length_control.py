"""Length-controlled win rates, under the name by which others import them."""

from eval.graders.length_control import *  # noqa: F403
