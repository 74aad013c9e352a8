"""How fast finished steps were, in tokens per second, to estimate the time of others."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.steps import artifact
from pipeline.steps.identity import OutsideIdentity
from pipeline.steps.record import Record, Records
from pipeline.steps.spec import Identity

# What decides a rate beside the model: kind, function, all weights or an adapter, engine.
Key = tuple[str, str, bool, str]


def key_of(identity: Identity) -> Key:
    """What steps of about the same rate share."""
    options = identity["options"]
    return identity["kind"], identity["run"], bool(options.get("lora")), options.get("engine", "")


def measured_rates(runs: Path, model: OutsideIdentity, *, use_cpu: bool) -> dict[Key, float]:
    """Return tokens per second of one process, from the records of all finished steps.

    A step counts if it started from the model, or from what was trained from it, on the same kind
    of device. Its time includes the loading of weights.

    Args:
        runs: the folder of all results.
        model: identity of the model that everything starts from.
        use_cpu: rates of CPUs, or else of GPUs.
    """
    records = artifact.finished_records(runs)
    tokens: dict[Key, float] = defaultdict(float)
    seconds: dict[Key, float] = defaultdict(float)
    for record in records.values():
        count = tokens_of(record)
        on_cpu = record["device"].startswith("cpu")
        if count and on_cpu == use_cpu and _root(record, records) == model:
            key = key_of(record["identity"])
            tokens[key] += count / record["processes"]
            seconds[key] += record["seconds"]
    return {key: tokens[key] / seconds[key] for key in tokens if seconds[key] > 0}


def tokens_of(record: Record) -> int:
    """The tokens that a finished step trained on, wrote, or read."""
    metrics = record["metrics"]
    return (
        metrics.get("tokens_trained")
        or metrics.get("tokens_generated")
        or metrics.get("tokens_read")
        or round(metrics.get("figures", {}).get("labels", 0))
    )


def _root(record: Record, records: Records) -> Any:
    """The identity of the model that a step's weights come from, or None."""
    base = record["identity"]["inputs"].get("base")
    while isinstance(base, str):
        before = records.get(base)
        base = before and before["identity"]["inputs"].get("base")
    return base
