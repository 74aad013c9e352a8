"""The metadata of a model card, by which the hub lists, filters and links a model.

Only results on test rows from the hub are given: `model-index` names data sets by hub id. It has no
field for an interval, so that n and interval are part of the metric's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from eval.benchmarks.registry import asked
from eval.report.text import format_number
from eval.report.types import Row
from pipeline.publish.portable import data_of, is_local
from pipeline.publish.stage import FinishedStage
from pipeline.steps.identity import EMBEDDED_HUB_ID, EMBEDDED_MODEL

_METRIC_TYPES = {
    "gsm8k": "accuracy",
    "accuracy": "accuracy",
    "rouge": "rouge",
    "alpaca": "win_rate",
    "tldr": "win_rate",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def metadata(found: FinishedStage, repository: str, rows: list[Row]) -> Any:
    """Return a card's metadata, a `huggingface_hub.ModelCardData`; what is unknown is left out."""
    from huggingface_hub import ModelCardData

    base, is_adapter = hub_base(found), found.model.adapter is not None
    results = list(_results(found, rows))
    known = [step.inputs[role] for step, role in data_of(found)]
    parts = [part for one in known for part in one.get("parts", [one])]
    datasets = [part["hub"] for part in parts if "hub" in part]
    return ModelCardData(
        base_model=base,
        base_model_relation=base and ("adapter" if is_adapter else "finetune"),
        datasets=list(dict.fromkeys(datasets)) or None,
        eval_results=results or None,
        library_name="peft" if is_adapter else "transformers",
        model_name=repository.split("/")[-1] if results else None,
        pipeline_tag="text-generation",
        tags=["bashrac", "trl", method_name(found), *(["lora"] if is_adapter else [])],
        **_licence(base),
    )


def hub_base(found: FinishedStage) -> str | None:
    """The hub id of the recipe's `model:`, None for a folder of this machine."""
    model = found.plan.recipe.model
    if model == EMBEDDED_MODEL:
        return EMBEDDED_HUB_ID
    return model if not is_local(model) and HUB_ID.fullmatch(model) else None


def _licence(base: str | None) -> dict[str, Any]:
    """The base model's licence as its own card gives it; nothing where the hub cannot be asked."""
    if base is None:
        return {}
    if base == EMBEDDED_HUB_ID:
        return {"license": "apache-2.0"}
    from huggingface_hub import HfApi

    try:
        card = HfApi().model_info(base, timeout=10).card_data
    except Exception:  # the licence is then not known here
        return {}
    names = ("license", "license_name", "license_link")
    found = {name: value for name in names if (value := card.get(name) if card else None)}
    return found if isinstance(found.get("license"), str) else {}


def _results(found: FinishedStage, rows: list[Row]) -> Iterator[Any]:
    """The primary measure of each benchmark whose test rows are on the hub."""
    from huggingface_hub import EvalResult

    for row in rows:
        step = asked(found.plan.results[found.name, row.benchmark, found.seed])
        identity = step.inputs["test"]
        if row.primary is None or "hub" not in identity:
            continue
        cell = row.primary
        low, high = (format_number(one, cell.unit) for one in (cell.low, cell.high))
        yield EvalResult(
            task_type="text-generation",
            dataset_type=identity["hub"],
            dataset_name=identity["hub"],
            dataset_config=identity["name"],
            dataset_split=step.locations["test"]["split"],
            dataset_revision=identity["revision"],
            metric_type=_METRIC_TYPES.get(row.benchmark, row.benchmark),
            metric_value=round(cell.value, 4),
            metric_name=f"{row.benchmark} {row.own}, n {cell.n}, 95 % interval {low} to {high}",
        )


def method_name(found: FinishedStage) -> str:
    """The stage's method, NEFTune under its own name."""
    recipe = found.plan.recipe
    stage = recipe.stages[found.name]
    noise = recipe.trainer_for(stage).get("neftune_noise_alpha")
    return "neftune" if stage.method == "sft" and noise else stage.method
