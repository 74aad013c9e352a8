"""Packages that few recipes need: whether they are here, and the extra that brings them."""

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
    """Return what to say where an optional package is not installed, None where it is."""
    try:
        spec = find_spec(package)
    except ValueError:  # a module in its place that came from nowhere
        spec = None
    # A folder of that name in the working directory is no package; wandb leaves one.
    if spec is not None and spec.origin is not None:
        return None
    extra = EXTRAS[package]
    return f"the package {package} is not installed: pip install 'bashrac[{extra}]'"


def require(package: str, purpose: str) -> None:
    """See that an optional package is installed.

    Raises:
        InputError: when it is not; it says what for, and how to get it.
    """
    if reason := missing(package):
        raise InputError(f"{purpose}: {reason}")
