"""Adapter folders from outside: without a tokenizer, or trained on a resized embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import InputError

WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model")
# The names that architectures give to layers with one row per token.
_TOKEN_LAYERS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds tokenizer files."""
    return any(True for pattern in _TOKENIZER_FILES for _ in folder.glob(pattern))


def resized_to(folder: Path) -> int | None:
    """The vocabulary size that a folder's adapter was trained with.

    None if the adapter holds no part of an embedding, or the folder holds no adapter.
    """
    rows = [count for _, count, _ in _token_rows(folder)]
    return max(rows, default=None)


def resize_base(model: Any, folder: Path) -> None:
    """Resize a base model's embedding to the vocabulary size its adapter was trained with.

    Raises:
        InputError: when the adapter does not hold the embedding rows that the base lacks.
    """
    wanted, has = resized_to(folder), model.get_input_embeddings().weight.shape[0]
    if wanted in (None, has):
        return
    whole = {layer for layer, _, is_whole in _token_rows(folder) if is_whole}
    needed = [
        name.split(".")[-1]
        for name, module in model.named_modules()
        if module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    tied = model.config.get_text_config().tie_word_embeddings
    missing = [] if tied and whole & set(needed) else [name for name in needed if name not in whole]
    if missing:
        raise InputError(
            f"the adapter in {folder} was trained on {wanted} tokens, its base has {has}, and the "
            f"adapter does not hold {' and '.join(missing)} for the others; save the adapter again "
            "with save_pretrained(..., save_embedding_layers=True)"
        )
    model.resize_token_embeddings(wanted, mean_resizing=False)  # the adapter overwrites it


def _token_rows(folder: Path) -> list[tuple[str, int, bool]]:
    """(layer, tokens, whether the whole layer) of each adapter tensor with one row per token."""
    if not (folder / WEIGHTS).is_file():
        return []
    from safetensors import safe_open

    found = []
    with safe_open(str(folder / WEIGHTS), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not iterable itself
            layer = next((part for part in key.split(".") if part in _TOKEN_LAYERS), None)
            if layer is None:
                continue
            shape = file.get_slice(key).get_shape()
            if "lora_embedding_A" in key:
                found.append((layer, shape[1], False))
            elif "lora_B" in key and layer in ("lm_head", "embed_out"):
                found.append((layer, shape[0], False))
            elif "lora_" not in key and "token_adapter" not in key and len(shape) == 2:
                found.append((layer, shape[0], True))
    return found
