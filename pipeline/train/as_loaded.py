"""Has a trained model saved with the config it was loaded with.

Trainers set what they need in the config of the live model: no cache, router logits, no dropout.
Whoever loads the saved model would get that too: `generate` of a mixture of experts dies of router
logits. Only the ids of special tokens stay as trainers set them, for they are the tokenizer's,
which is saved beside the config.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from pipeline.models.load import config_for
from pipeline.steps.context import StepContext

_OF_THE_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")
_OF_SAVING = ("dtype", "architectures", "transformers_version")


def restore_config(step: StepContext, model: Any) -> None:
    """Set the config of a model that has been trained to what the step loaded."""
    _restore(model.config, config_for(step))


def _restore(config: Any, loaded: Any) -> None:
    for name, value in vars(loaded).items():
        if isinstance(value, PreTrainedConfig):  # of a part, such as the text of a model of images
            _restore(getattr(config, name), value)
        elif not name.startswith("_") and name not in (*_OF_THE_TOKENIZER, *_OF_SAVING):
            setattr(config, name, value)
