"""Whether a model's files are safe to load, decided without loading them.

Pickled weights can hold code, and a model's folder can hold Python files. Neither is loaded unless
the recipe allows it, and then only for the recipe's own `model:`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.models.adapter_files import has_tokenizer
from pipeline.recipe.schema import Recipe
from pipeline.steps import artifact
from pipeline.steps.identity import EMBEDDED_MODEL

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Trust:
    """What a model's files may do.

    Attributes:
        code: Python files in the model's folder may run (`trust_remote_code`).
        pickles: its weights may be pickled (`pickled_weights`).
    """

    code: bool = False
    pickles: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> Trust:
        """What a recipe allows the files of its `model:`."""
        return cls(code=recipe.trust_remote_code, pickles=recipe.pickled_weights)


def pickled_problem(folder: Path) -> str | None:
    """Describe the problem of a folder with only pickled weights; None for any other folder."""
    found = _pickled_file(folder)
    return found and describe_pickles(f"only pickled weights ({found})")


def describe_pickles(what: str) -> str:
    """Return the rest of a sentence that starts with the name of a model that holds `what`."""
    return (
        f"holds {what}, which can run code when loaded; convert them to safetensors, or, if it is "
        "the recipe's model: and you trust where it comes from, write pickled_weights: true"
    )


def check_pickles(place: str, trust: Trust) -> None:
    """Refuse a local folder with pickled weights, unless they are trusted.

    Raises:
        InputError: for such a folder.
    """
    if not trust.pickles and (problem := pickled_problem(Path(place))):
        raise InputError(f"model {place} {problem}")


def _pickled_file(folder: Path) -> str | None:
    """The name of a pickled file that loading a folder's weights would read."""
    if (folder / "adapter_config.json").is_file():
        safe = (folder / "adapter_model.safetensors").is_file()
        return None if safe else _first_pickled(folder)
    if named := artifact.read_object(folder / "config.json").get("transformers_weights"):
        return named if str(named).endswith(_PICKLED) else None
    if (folder / "model.safetensors").is_file():
        return None
    if (folder / _INDEX).is_file():
        listed = dict(artifact.read_object(folder / _INDEX).get("weight_map") or {}).values()
        return next((name for name in listed if not str(name).endswith(".safetensors")), None)
    return _first_pickled(folder)


def _first_pickled(folder: Path) -> str | None:
    files = sorted(path.name for path in folder.glob("*") if path.is_file())
    return next((name for name in files if name.endswith(_PICKLED)), None)


@contextmanager
def readable_errors(model: str) -> Iterator[None]:
    """Turn the errors that libraries raise for a model that cannot be loaded into InputErrors."""
    try:
        yield
    except Exception as error:
        kind = type(error).__name__
        # By name: no module of ours imports pickle, not even for its exception class.
        if not isinstance(error, (OSError, ValueError)) and kind != "UnpicklingError":
            raise
        said = " ".join(str(error).split())
        raise InputError(f"model {model}{_why_not(model, said, kind)}") from error


def _why_not(model: str, said: str, kind: str) -> str:
    """Return the rest of a sentence that starts with the name of a model that does not load."""
    if "trust_remote_code=True" in said:
        return (
            " needs its own Python code, which is not run; use a model that transformers supports, "
            "or, if it is the recipe's model: and you have read that code, write "
            "trust_remote_code: true"
        )
    if "cannot be loaded with `safetensors`" in said:
        return f" {describe_pickles('no safetensors, so only pickled weights')}"
    if "tokenizer" in said and Path(model).is_dir() and not has_tokenizer(Path(model)):
        return (
            " holds no tokenizer; copy the files of its tokenizer (tokenizer.json, "
            "tokenizer_config.json) into it from the model it was derived from"
        )
    if Path(model).is_dir():
        reason = f"the folder does not load: {said[:300]}"
    else:
        reason = f"no such folder, and it cannot be loaded from the hub ({kind})"
    return f": {reason}; give a folder with config.json and weights, a hub id, or {EMBEDDED_MODEL}"
