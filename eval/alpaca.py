"""AlpacaEval 2, under the name by which others import it."""

from eval.benchmarks.alpaca_files import *  # noqa: F403
from eval.graders.alpaca import *  # noqa: F403
