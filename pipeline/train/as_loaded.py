"""Restores the config that a trained model was loaded with, before it is saved.

Trainers change the live model's config for their own needs: no cache, router logits, no dropout.
Saved, these would affect everyone who loads the model: `generate` of a mixture of experts fails
with router logits. Only the ids of special tokens stay as trainers set them, because they are those
of the tokenizer, which is saved with the model.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from pipeline.models.load import config_for
from pipeline.steps.context import StepContext

_OF_THE_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")
_OF_SAVING = ("dtype", "architectures", "transformers_version")


def restore_config(step: StepContext, model: Any) -> None:
    """Set a trained model's config to the one that the step loaded."""
    _restore(model.config, config_for(step))


def _restore(config: Any, loaded: Any) -> None:
    for name, value in vars(loaded).items():
        if isinstance(value, PreTrainedConfig):  # such as a multimodal model's text_config
            _restore(getattr(config, name), value)
        elif not name.startswith("_") and name not in (*_OF_THE_TOKENIZER, *_OF_SAVING):
            setattr(config, name, value)
