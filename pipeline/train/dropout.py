"""Turns off dropout and jitter in training, for losses that compare two passes of the same weights.

TRL's `disable_dropout` covers `torch.nn.Dropout` modules only. Many models store a number instead,
and read it in their forward pass: Llama's `attention_dropout`, OPT's `dropout` and
`layerdrop`, Mixtral's `router_jitter_noise`. With any of them DPO's policy and reference differ
from the first step on, by noise alone.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedConfig

_NOISE = re.compile(r"dropout|pdrop|layer_?drop|drop_(prob|path|rate)|jitter")


def without_noise(model: Any) -> None:
    """Set every dropout and jitter of a model to 0, in its modules and in its live config."""
    for module in model.modules():
        _silence(module)
        if "dropout" in type(module).__name__.lower() and hasattr(module, "p"):
            module.p = 0.0
    _silence_config(model.config)


def _silence_config(config: Any) -> None:
    _silence(config)
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            _silence_config(part)


def _silence(holder: Any) -> None:
    for name, value in list(vars(holder).items()):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and _NOISE.search(name):
            setattr(holder, name, 0.0)
