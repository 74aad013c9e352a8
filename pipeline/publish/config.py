"""The config of a published model.

Trainers turn router logits on in the config of a mixture of experts, and a stage that was trained
before bashrac turned them off again has saved them: transformers' `generate` then fails. What is
published has them as the recipe's model has them.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.publish.stage import FinishedStage

CONFIG = "config.json"
_KEY = "output_router_logits"


def corrected_config(found: FinishedStage, config: dict[str, Any]) -> bytes | None:
    """A config.json with router logits as in the recipe's model, or None where it has them so."""
    places = [place for place in _places(config) if _KEY in place]
    if not places:
        return None
    base = next((place[_KEY] for place in _places(_base(found)) if _KEY in place), False)
    if all(place[_KEY] == base for place in places):
        return None
    for place in places:
        place[_KEY] = base
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _places(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A config, and those of its parts, such as the text of a model of images."""
    return [config, *(part for part in config.values() if isinstance(part, dict))]


def _base(found: FinishedStage) -> dict[str, Any]:
    """The config.json of the recipe's model."""
    from transformers import PreTrainedConfig

    from pipeline.models.locate import base_of

    place = base_of(found.plan.recipe.model)
    return PreTrainedConfig.get_config_dict(place, revision=found.revision)[0]
