"""Where a model's files are: the embedded model, a local folder, a hub id, or a step's folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.models.embedded import embedded_model
from pipeline.steps.identity import EMBEDDED_MODEL, adapter_base

MODEL_FOLDER = "model"


def locate(model: str) -> str:
    """Return what `from_pretrained` takes for a recipe's `model:` or a step's folder."""
    if model == EMBEDDED_MODEL:
        return embedded_model()
    folder = Path(model).expanduser()
    if (folder / MODEL_FOLDER).is_dir():
        return str(folder / MODEL_FOLDER)
    return str(folder) if folder.is_dir() else model


def base_of(model: str) -> str:
    """Return `locate` of the base model of an adapter, or of the model itself."""
    place = locate(model)
    base = adapter_base(Path(place))
    return place if base is None else locate(base)
