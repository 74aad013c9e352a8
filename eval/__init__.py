"""Graders, result types and statistics: what turns stored samples into numbers."""

import os
import sys
import warnings
from importlib.machinery import PathFinder


def _warn_if_pipeline_is_hidden() -> None:
    """As `pipeline` does for `eval`; neither can ask the other, which may not be there."""
    ours = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "pipeline")
    spec = getattr(sys.modules.get("pipeline"), "__spec__", None) or PathFinder.find_spec(
        "pipeline"
    )
    found = spec and spec.origin and os.path.realpath(spec.origin)
    if found and os.path.dirname(found) != ours:
        warnings.warn(
            f"`import pipeline` finds {found}, not bashrac's package {ours}: rename that file or "
            "its package, or put its folder later on sys.path (PYTHONPATH)",
            stacklevel=3,
        )


_warn_if_pipeline_is_hidden()
