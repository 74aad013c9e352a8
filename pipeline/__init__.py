"""bashrac: staged fine-tuning with self-generated tokens (BASH, RAC) and DPO."""

import os
import sys
import warnings
from importlib.machinery import PathFinder

__version__ = "0.1.0"


def warn_if_eval_is_hidden() -> None:
    """Warn where `import eval` finds something other than the package beside this one.

    The name is a common one: a user's eval.py wins where its folder comes first on sys.path.
    """
    ours = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "eval")
    spec = getattr(sys.modules.get("eval"), "__spec__", None) or PathFinder.find_spec("eval")
    # A folder without __init__.py has no origin, and never wins over a package.
    found = spec and spec.origin and os.path.realpath(spec.origin)
    if found and os.path.dirname(found) != ours:
        warnings.warn(
            f"`import eval` finds {found}, not bashrac's package {ours}: rename that file or its "
            "package, or put its folder later on sys.path (PYTHONPATH)",
            stacklevel=3,
        )


# `python -m pipeline`, which is still being located, puts the user's folder last before it looks.
if sys.argv[:1] != ["-m"]:
    warn_if_eval_is_hidden()
