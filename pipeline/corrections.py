"""RAC labels, under the name by which others import them."""

from pipeline.rows.corrections import *  # noqa: F403
