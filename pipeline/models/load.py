"""Loads and merges models: the embedded model, local folders, hub ids, and LoRA adapters.

Decisions: (1) an adapter is merged only if the recipe asks for it, by a `merge` step, or in memory
for steps that write rows (`generation.merge_for_reading`); (2) an external model may be a folder
with a LoRA adapter, whose base is named by `adapter_config.json`; (3) Python code and pickled
weights in a model's folder are refused unless the recipe trusts them.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, TypedDict

from pipeline.errors import InputError
from pipeline.models.adapter_files import has_tokenizer, resize_base, resized_to
from pipeline.models.locate import MODEL_FOLDER, base_of, locate
from pipeline.models.quantize import finish_loading, loading_options
from pipeline.models.trust import Trust, check_pickles, readable_errors
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, changed_error
from pipeline.steps.identity import forget, model_identity
from pipeline.steps.options import ComputingOptions, ModelOptions, RenderedModelOptions

UNTRUSTED = Trust()
_PADDING = re.compile(r"(?<![a-z])pad(ding)?(?![a-z])")


class Terms(TypedDict):
    """On what terms a model from outside is read."""

    revision: str | None
    trust: Trust


class Weights(Terms):
    """Where weights lie, and on what terms they are read."""

    base: str
    adapter: str | None


def load_config(model: str, *, revision: str | None = None, trust: Trust = UNTRUSTED) -> Any:
    """Load a model's configuration.

    Raises:
        InputError: when the model is not found, or needs code that is not trusted.
    """
    from transformers import AutoConfig

    return _without_router_logits(
        _from_pretrained(AutoConfig, base_of(model), trust, revision=revision)
    )


def _without_router_logits(config: Any) -> Any:
    """Turn off `output_router_logits`, which a trainer may have saved with a mixture of experts.

    The forward pass would compute an auxiliary loss, which fails together with a KV cache.
    """
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False
    return config


def window_of(model: str, *, revision: str | None = None, trust: Trust = UNTRUSTED) -> int | None:
    """Return the context length in a model's config, or None."""
    config = load_config(model, revision=revision, trust=trust)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def vocabulary_of(
    model: str, *, revision: str | None = None, trust: Trust = UNTRUSTED
) -> int | None:
    """Return the number of rows in a model's embedding, or None if its files do not state it."""
    config = load_config(model, revision=revision, trust=trust)
    size = getattr(config.get_text_config(), "vocab_size", None)
    return resized_to(Path(locate(model))) or size


def load_tokenizer(
    model: str,
    *,
    revision: str | None = None,
    trust: Trust = UNTRUSTED,
    chat_template: str | None = None,
    chat_template_name: str | None = None,
) -> Any:
    """Load a model's tokenizer.

    An adapter saved without a tokenizer uses that of its base. `chat_template` is for models that
    have none; `chat_template_name` chooses among several, and is saved with the tokenizer.

    Raises:
        InputError: when the model is not found, needs code that is not trusted, or does not have
            the requested chat template.
    """
    from transformers import AutoTokenizer

    place = locate(model)
    if Path(place).is_dir() and not has_tokenizer(Path(place)):
        place = base_of(model)  # unchanged if the folder does not hold an adapter
    tokenizer = _from_pretrained(AutoTokenizer, place, trust, revision=revision)
    # Software that masks labels by padding token would mask the end of every answer, if both are
    # the same token. Prefer a special token for padding, then the unknown token.
    unfit = (None, tokenizer.eos_token_id, *end_ids(model, revision=revision, trust=trust))
    if tokenizer.pad_token_id in unfit:
        added = tokenizer.added_tokens_decoder.items()
        special = [(number, token.content.lower()) for number, token in added if token.special]
        padding = [number for number, text in special if _PADDING.search(text)]
        better = [number for number in (*padding, tokenizer.unk_token_id) if number not in unfit]
        tokenizer.pad_token_id = better[0] if better else tokenizer.eos_token_id
    tokenizer.chat_template = _chosen(tokenizer.chat_template, chat_template_name) or chat_template
    return tokenizer


def _chosen(templates: Any, name: str | None) -> Any:
    """The named chat template; without a name all, of which transformers uses the default."""
    names = sorted(templates) if isinstance(templates, dict) else []
    if name is not None and name not in names:
        there = f"its templates are {', '.join(names)}" if names else "it has no named templates"
        raise InputError(f"chat_template_name: the model has no chat template {name!r}: {there}")
    if name is None and names and "default" not in names:
        raise InputError(
            "the model has several chat templates and no default: choose one with "
            f"chat_template_name: {', '.join(names)}"
        )
    return templates if name is None else templates[name]


def end_ids(
    model: str, *, revision: str | None = None, trust: Trust = UNTRUSTED
) -> tuple[int, ...]:
    """Return the end tokens of a model's generation config, or else of its config."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(
            base_of(model), revision=revision or "main"
        ).eos_token_id
    except OSError:
        config = load_config(model, revision=revision, trust=trust)
        found = GenerationConfig.from_model_config(config).eos_token_id
    listed = found if isinstance(found, (list, tuple)) else [found]
    return tuple(number for number in listed if number is not None)


def load_model(
    base: str,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    trust: Trust = UNTRUSTED,
    dtype: str = "float32",
    quantize: str | None = None,
    device: Any = "cpu",
    trainable_adapter: bool = False,
) -> Any:
    """Load weights, with a LoRA adapter on top when there is one.

    Args:
        base: hub id, folder, embedded name, or the folder of a step; may hold an adapter.
        adapter: the folder of a step that trained an adapter.
        revision: hub revision of the base.
        trust: what the model's files may do.
        dtype: 'float32', 'bfloat16' or 'float16'.
        quantize: 'nf4' for a 4-bit base (see pipeline/models/quantize.py).
        device: where a 4-bit model is put; all others are loaded on the CPU.
        trainable_adapter: whether the adapter will be trained further.

    Raises:
        InputError: when the model is not found, or its files are not trusted.
    """
    whole = base_of(base)
    if whole != locate(base):
        if adapter is not None or trainable_adapter:
            raise InputError(
                f"{base} is an adapter, and cannot be trained further; merge it into its base, and "
                "start from the result"
            )
        adapter = base
    model = _load_whole(whole, revision, trust, dtype, quantize, device)
    if adapter is None:
        return model
    from peft import PeftModel

    place = locate(adapter)
    check_pickles(place, trust)
    resize_base(model, Path(place))
    with readable_errors(place):
        if trainable_adapter:
            return PeftModel.from_pretrained(model, place, is_trainable=True)
        # By default peft keeps the adapter in float32, for training, and casts every activation.
        adapted = PeftModel.from_pretrained(model, place, autocast_adapter_dtype=False)
    # With one position per row, torch multiplies by a weight without requires_grad in a way that
    # first copies it for each row: 3.4 GB for 64 rows and the embedded model's output layer.
    for weight in adapted.parameters():
        weight.requires_grad_(weight.is_floating_point())
    return adapted


def load_merged(
    base: str,
    *,
    adapter: str,
    revision: str | None = None,
    trust: Trust = UNTRUSTED,
    quantize: str | None = None,
) -> Any:
    """Load weights with an adapter merged into them, all in float32.

    A 4-bit base is dequantised first, because those are the weights that the adapter was trained
    on, not the original ones.

    Raises:
        InputError: as `load_model`.
    """
    from peft import PeftModel

    model = _load_whole(base_of(base), revision, trust, "float32", quantize, "cpu")
    place = locate(adapter)
    check_pickles(place, trust)
    whole = model.dequantize() if quantize else model
    resize_base(whole, Path(place))
    with readable_errors(place):
        adapted = PeftModel.from_pretrained(whole, place)
    return adapted.merge_and_unload()


def _load_whole(
    place: str, revision: str | None, trust: Trust, dtype: str, quantize: str | None, device: Any
) -> Any:
    """Load a model without an adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    check_pickles(place, trust)
    options = (
        {"dtype": getattr(torch, dtype)} if quantize is None else loading_options(dtype, device)
    )
    safe = None if trust.pickles else True
    model = _from_pretrained(
        AutoModelForCausalLM, place, trust, revision=revision, use_safetensors=safe, **options
    )
    _without_router_logits(model.config)
    return model if quantize is None else finish_loading(model, dtype)


def load_for(step: StepContext[ComputingOptions], *, trainable_adapter: bool = False) -> Any:
    """Load a step's model, its inputs `base` and `adapter`, in the step's precision.

    Raises:
        InputError: when the model is not found, or is local and has changed since the plan.
    """
    return load_model(
        **weights_of(step),
        dtype=step.precision.weights,
        quantize=step.options.get("quantize"),
        device=step.device,
        trainable_adapter=trainable_adapter,
    )


def weights_of(step: StepContext[ModelOptions]) -> Weights:
    """Return base, adapter, revision and trust of a step's model, as `load_model` takes them.

    Raises:
        InputError: when a local model has changed since the plan.
    """
    planned, base = step.spec.inputs["base"], step.locations["base"]
    if isinstance(planned, dict) and "files" in planned:
        forget()
        if model_identity(base, None) != planned:
            raise changed_error(base)
    return {"base": base, "adapter": step.locations.get("adapter"), **_access(step)}


def load_to_read(step: StepContext[ComputingOptions]) -> Any:
    """Load the model of a step that writes rows, on its device (decision 1)."""
    model = load_for(step).to(step.device)
    if step.options.get("merge_for_reading") and hasattr(model, "merge_and_unload"):
        return model.merge_and_unload()
    return model


def tokenizer_for(step: StepContext[RenderedModelOptions]) -> Any:
    """Load the tokenizer of a step's model."""
    chosen = isinstance(step.spec.inputs["base"], str)  # a step saves only the template it chose
    return load_tokenizer(
        step.locations["base"],
        chat_template=step.options.get("chat_template"),
        chat_template_name=None if chosen else step.options.get("chat_template_name"),
        **_access(step),
    )


def end_ids_for(step: StepContext[ModelOptions]) -> tuple[int, ...]:
    """Return the end tokens of a step's model."""
    return end_ids(step.locations["base"], **_access(step))


def config_for(step: StepContext[ModelOptions]) -> Any:
    """Return the config of a step's model."""
    return load_config(step.locations["base"], **_access(step))


def vocabulary_for(step: StepContext[ModelOptions]) -> int | None:
    """Return `vocabulary_of` a step's model."""
    return vocabulary_of(step.locations.get("adapter", step.locations["base"]), **_access(step))


def window_for(step: StepContext[ModelOptions]) -> int | None:
    """Return the context length of a step's model, or None."""
    return window_of(step.locations["base"], **_access(step))


def merge(step: StepContext[RenderedModelOptions]) -> None:
    """Step: merge an adapter into its base, in float32, and save plain weights."""
    weights, adapter = weights_of(step), step.locations["adapter"]
    model = load_merged(
        weights["base"], adapter=adapter, revision=weights["revision"], trust=weights["trust"]
    )
    step.metrics["merged_adapter"] = adapter
    if step.state.is_main_process:
        folder = step.directory / MODEL_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        with artifact.atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer_for(step).save_pretrained(temporary)


def _access(step: StepContext[ModelOptions]) -> Terms:
    """The revision of a step's model, and the trust it is loaded with."""
    base = step.spec.inputs["base"]
    whole = base.get("base", base) if isinstance(base, dict) else {}  # for an adapter, its base
    return {
        "revision": whole.get("revision"),
        "trust": Trust(
            code=step.options.get("trust_remote_code", False),
            pickles=step.runtime_options.get("pickled_weights", False),
        ),
    }


def _from_pretrained(auto_class: Any, model: str, trust: Trust, **options: Any) -> Any:
    # For pickled weights, transformers would ask the hub to convert and publish them.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    # Under FSDP only one process per machine would read weights, and only training broadcasts them:
    # the others would write rows, or build DPO's reference model, from uninitialised memory.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    with readable_errors(model):
        return auto_class.from_pretrained(model, trust_remote_code=trust.code, **options)
