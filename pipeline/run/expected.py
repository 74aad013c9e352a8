"""How long a step is likely to take, judged by finished steps that do as much of the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.run.queue import urgency_of
from pipeline.steps import artifact
from pipeline.steps.context import read_progress
from pipeline.steps.spec import Identity, StepSpec
from pipeline.text import format_duration

# What a step's time depends on, besides its inputs; `beta` or a learning rate are not among it.
_AMOUNTS = (
    "batch_size", "dtype", "engine", "lora", "max_length", "max_new_tokens", "max_steps",
    "merge_for_reading", "num_train_epochs", "quantize", "samples",
)  # fmt: skip


def expected_seconds(
    steps: Iterable[StepSpec], runs: Path, use_cpu: bool, processes: int
) -> dict[str, float]:
    """Return the seconds that unfinished steps still need and finished ones took, by fingerprint.

    A step of which nothing like it has finished on such a launch is left out.
    """
    steps = list(steps)
    records = artifact.finished_records(runs)
    identities = {step.fingerprint: step.identity for step in steps}
    identities |= {known: record["identity"] for known, record in records.items()}
    took: dict[str, list[float]] = defaultdict(list)
    for record in records.values():
        same_device = record["device"].startswith("cpu") == use_cpu
        if same_device and record["processes"] == processes:
            took[_likeness(record["identity"], identities)].append(record["seconds"])
    found = {}
    for step in steps:
        if step.fingerprint in records:
            found[step.fingerprint] = records[step.fingerprint]["seconds"]
            continue
        progress = read_progress(step.directory(runs))
        if progress["left"] is not None:  # it is running, or was stopped
            found[step.fingerprint] = progress["left"]
        elif seconds := took.get(_likeness(step.identity, identities)):
            found[step.fingerprint] = sorted(seconds)[len(seconds) // 2]
    return found


def format_time_left(pending: Sequence[StepSpec], seconds: dict[str, float], jobs: int = 1) -> str:
    """How long steps are likely to take together, of as many as it is known of; ''.

    With several jobs at a time that is their share of it, or the longest chain of steps that wait
    for each other.
    """
    known = [seconds[step.fingerprint] for step in pending if step.fingerprint in seconds]
    if not known:
        return ""
    some = "" if len(known) == len(pending) else f" for {len(known)} of them"
    chains = urgency_of(pending, {step.fingerprint: 0.0 for step in pending} | seconds)
    left = max(sum(known) / jobs, *chains.values())
    return f", about {format_duration(left)}{some}"


def _likeness(identity: Identity, identities: dict[str, Identity]) -> str:
    """What steps of about the same duration share: function, model, data, and amounts."""
    options, inputs = identity["options"], identity["inputs"]
    every = {**options, **(options.get("trainer") or {})}
    outside = {name: value if isinstance(value, dict) else None for name, value in inputs.items()}
    amounts = {key: every.get(key) for key in _AMOUNTS}
    return artifact.canonical_json(
        [identity["kind"], identity["run"], outside, amounts, _model(identity, identities)]
    )


def _model(identity: Identity, identities: dict[str, Identity]) -> Any:
    """The identity of the model that the weights come from that a step reads, or grades."""
    while True:
        inputs = identity["inputs"]
        before = inputs.get("base") or next(iter(inputs.values()), None)
        if not isinstance(before, str) or before not in identities:
            return before
        identity = identities[before]
