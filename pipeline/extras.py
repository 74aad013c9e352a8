"""Optional packages: whether they are installed, and the extra that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from pipeline.errors import InputError

# Package -> the extra of pyproject.toml that installs it.
EXTRAS = {
    "deepspeed": "deepspeed",
    "openai": "judge",
    "tensorboard": "report",
    "trackio": "report",
    "wandb": "report",
}


def missing(package: str) -> str | None:
    """Return a sentence if an optional package is not installed, or None."""
    try:
        spec = find_spec(package)
    except ValueError:  # a module of that name without a spec
        spec = None
    # A mere folder of that name has a spec without an origin; wandb leaves one where it runs.
    if spec is not None and spec.origin is not None:
        return None
    extra = EXTRAS[package]
    return f"the package {package} is not installed: pip install 'bashrac[{extra}]'"


def require(package: str, purpose: str) -> None:
    """Check that an optional package is installed.

    Raises:
        InputError: when it is not; it says what needs it, and how to install it.
    """
    if reason := missing(package):
        raise InputError(f"{purpose}: {reason}")
