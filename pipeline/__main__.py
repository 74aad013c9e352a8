"""`python -m pipeline` and `accelerate launch -m pipeline` are the `bashrac` command."""

import sys
from pathlib import Path

from pipeline import warn_if_eval_is_hidden

# `-m` puts the user's folder first, where a file eval.py would be taken for our package.
if Path(sys.path[0] or ".").resolve() == Path.cwd():
    sys.path.append(sys.path.pop(0))
warn_if_eval_is_hidden()

from pipeline.cli.main import main  # noqa: E402 - once sys.path is in order

if __name__ == "__main__":
    raise SystemExit(main())
