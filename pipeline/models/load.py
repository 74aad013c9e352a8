"""Finds, loads and saves models: the embedded one, local folders, hub ids, and LoRA adapters.

Decisions: (1) an adapter is only merged where a recipe asks for it, by a `merge` step, or in memory
for steps that write rows (`generation.merge_for_reading`); (2) a model from outside may be a folder
with a LoRA adapter: its base is what `adapter_config.json` names; (3) code and pickled weights
among a model's files are refused, unless its recipe trusts them.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.models.adapter_files import has_tokenizer, resize_base, resized_to
from pipeline.models.locate import MODEL_FOLDER, base_of, locate
from pipeline.models.quantize import finish_loading, loading_options
from pipeline.models.trust import Trust, check_pickles, readable_errors
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, changed_error
from pipeline.steps.identity import forget, model_identity

UNTRUSTED = Trust()
_PADDING = re.compile(r"(?<![a-z])pad(ding)?(?![a-z])")


def load_config(model: str, *, revision: str | None = None, trust: Trust = UNTRUSTED) -> Any:
    """Load a model's configuration.

    Raises:
        InputError: when the model is not there, or needs code that is not trusted.
    """
    from transformers import AutoConfig

    return _without_router_logits(
        _from_pretrained(AutoConfig, base_of(model), trust, revision=revision)
    )


def _without_router_logits(config: Any) -> Any:
    """Turn off what a mixture of experts may have been saved with by a trainer.

    Its forward pass would add up an auxiliary loss, which fails beside a cache of earlier tokens.
    """
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False
    return config


def window_of(model: str, *, revision: str | None = None, trust: Trust = UNTRUSTED) -> int | None:
    """Return how many tokens a model can read, where its config says."""
    config = load_config(model, revision=revision, trust=trust)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def vocabulary_of(
    model: str, *, revision: str | None = None, trust: Trust = UNTRUSTED
) -> int | None:
    """Return how many tokens a model's embedding has a row for, where its files say."""
    config = load_config(model, revision=revision, trust=trust)
    own = getattr(config.get_text_config(), "vocab_size", None)
    return resized_to(Path(locate(model))) or own


def load_tokenizer(
    model: str,
    *,
    revision: str | None = None,
    trust: Trust = UNTRUSTED,
    chat_template: str | None = None,
    chat_template_name: str | None = None,
) -> Any:
    """Load a model's tokenizer.

    An adapter that was saved without one has its base's. A padding token that is missing or is an
    end token gives way to another, if there is one; `chat_template` is for a model that has none,
    `chat_template_name` chooses among several, and the tokenizer is saved with it.

    Raises:
        InputError: when the model is not there, needs code that is not trusted, or has not the
            chat template that is asked for.
    """
    from transformers import AutoTokenizer

    place = locate(model)
    if Path(place).is_dir() and not has_tokenizer(Path(place)):
        # Of an adapter; any other folder holds one under another name, or none.
        place = base_of(model)
    tokenizer = _from_pretrained(AutoTokenizer, place, trust, revision=revision)
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
    """The chat template of a name; without one all, of which transformers takes the default."""
    names = sorted(templates) if isinstance(templates, dict) else []
    if name is not None and name not in names:
        there = f"its templates are {', '.join(names)}" if names else "it has no named templates"
        raise InputError(f"chat_template_name: the model has no chat template {name!r}: {there}")
    if name is None and names and "default" not in names:
        raise InputError(
            f"the model has several chat templates and none is the default: choose one with "
            f"chat_template_name: {', '.join(names)}"
        )
    return templates if name is None else templates[name]


def end_ids(
    model: str, *, revision: str | None = None, trust: Trust = UNTRUSTED
) -> tuple[int, ...]:
    """Return the end tokens of a model's generation config, or of its config where it has none."""
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
        base: hub id, folder, embedded name, or the folder of a step; perhaps of an adapter.
        adapter: the folder of a step that trained an adapter.
        revision: hub revision of the base.
        trust: what its files may do.
        dtype: 'float32', 'bfloat16' or 'float16'.
        quantize: 'nf4' for a base in 4 bits (see pipeline/models/quantize.py).
        device: where one in 4 bits is put; others are put nowhere else than on the CPU.
        trainable_adapter: whether the adapter is going to be trained further.

    Raises:
        InputError: when the model is not there, or holds what is not trusted.
    """
    whole = base_of(base)
    if whole != locate(base):
        if adapter is not None or trainable_adapter:
            raise InputError(f"{base} is an adapter, and nothing can be trained on top of one here")
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
        # peft would keep the adapter in float32, as training wants it, and cast every activation.
        adapted = PeftModel.from_pretrained(model, place, autocast_adapter_dtype=False)
    # For one position of many rows, torch multiplies by a weight that needs no gradient in a way
    # that first copies it once per row: 3.4 GB for 64 rows and this output layer.
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

    Of a base in 4 bits, the weights that those mean are merged into: the adapter was trained on
    them, and not on the ones they were made of.

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
    """Load a model that is no adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    check_pickles(place, trust)
    how = {"dtype": getattr(torch, dtype)} if quantize is None else loading_options(dtype, device)
    safe = None if trust.pickles else True
    model = _from_pretrained(
        AutoModelForCausalLM, place, trust, revision=revision, use_safetensors=safe, **how
    )
    _without_router_logits(model.config)
    return model if quantize is None else finish_loading(model, dtype)


def load_for(step: StepContext, *, trainable_adapter: bool = False) -> Any:
    """Load the model a step reads, its inputs `base` and `adapter`, in the step's precision.

    Raises:
        InputError: when the model is not there, or a local one has changed since the plan.
    """
    return load_model(
        **weights_of(step),
        dtype=step.precision.weights,
        quantize=step.options.get("quantize"),
        device=step.device,
        trainable_adapter=trainable_adapter,
    )


def weights_of(step: StepContext) -> dict[str, Any]:
    """Return where the weights lie that a step reads, base, adapter, revision, and their trust.

    Raises:
        InputError: when a local model has changed since the plan.
    """
    planned, base = step.spec.inputs["base"], step.locations["base"]
    if isinstance(planned, dict) and "files" in planned:
        forget()
        if model_identity(base, None) != planned:
            raise changed_error(base)
    return {"base": base, "adapter": step.locations.get("adapter"), **_terms(step)}


def load_to_read(step: StepContext) -> Any:
    """Load the model of a step that writes rows, on its device (decision 1)."""
    model = load_for(step).to(step.device)
    if step.options.get("merge_for_reading") and hasattr(model, "merge_and_unload"):
        return model.merge_and_unload()
    return model


def tokenizer_for(step: StepContext) -> Any:
    """Load the tokenizer of the model a step reads."""
    named = ["chat_template"]
    if not isinstance(step.spec.inputs["base"], str):  # an earlier step saved the one it chose
        named.append("chat_template_name")
    templates = {key: step.options[key] for key in named if key in step.options}
    return load_tokenizer(step.locations["base"], **templates, **_terms(step))


def end_ids_for(step: StepContext) -> tuple[int, ...]:
    """Return the end tokens of the model a step reads."""
    return end_ids(step.locations["base"], **_terms(step))


def config_for(step: StepContext) -> Any:
    """Return the config of the model a step reads."""
    return load_config(step.locations["base"], **_terms(step))


def vocabulary_for(step: StepContext) -> int | None:
    """Return how many tokens the model a step reads has a row for, where its files say."""
    return vocabulary_of(step.locations.get("adapter", step.locations["base"]), **_terms(step))


def window_for(step: StepContext) -> int | None:
    """Return how many tokens the model a step reads can read, where its config says."""
    return window_of(step.locations["base"], **_terms(step))


def merge(step: StepContext) -> None:
    """Step: merge an adapter into its base, in float32, and save plain weights.

    The folder appears under its name only when whole.
    """
    model = load_merged(**weights_of(step))
    step.metrics["merged_adapter"] = step.locations["adapter"]
    if step.state.is_main_process:
        folder = step.directory / MODEL_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        with artifact.whole_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer_for(step).save_pretrained(temporary)


def _terms(step: StepContext) -> dict[str, Any]:
    """On what terms a step reads its model: revision and trust."""
    base = step.spec.inputs["base"]
    whole = base.get("base", base) if isinstance(base, dict) else {}  # of an adapter its base
    return {
        "revision": whole.get("revision"),
        "trust": Trust(
            code=step.options.get("trust_remote_code", False),
            pickles=step.runtime_options.get("pickled_weights", False),
        ),
    }


def _from_pretrained(auto_class: Any, model: str, trust: Trust, **options: Any) -> Any:
    # Given weights that are pickled, transformers would ask the hub to convert and publish them.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    # Under FSDP only one process a machine would read weights, and only training hands them on:
    # the others would write rows, or take as DPO's reference, what happens to lie in memory.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    with readable_errors(model):
        return auto_class.from_pretrained(model, trust_remote_code=trust.code, **options)
