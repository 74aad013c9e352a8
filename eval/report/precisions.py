"""What the steps of a report computed in, and whether stages that it compares differ in it."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.plan import Plan

# What is computed -> precision -> the stages whose steps were computed in it.
Precisions = dict[str, dict[str, list[str]]]


def precisions_of(plan: Plan, records: dict[str, dict[str, Any]]) -> Precisions:
    """Look through records (by fingerprint); those of earlier versions name no precision."""
    found: Precisions = {}
    needed_by = plan.needed_by()
    for step in plan.steps:
        if known := records.get(step.fingerprint, {}).get("precision"):
            what = "training" if step.kind == "train" else "reading"
            stages = found.setdefault(what, {}).setdefault(known["compute"], [])
            stages += [one for one in needed_by[step.fingerprint] if one not in stages]
    return found


def precision_words(found: Precisions) -> str:
    """Such as 'float32', or 'training in bfloat16, reading in float32'; '' for none."""
    words = {what: " and ".join(sorted(one)) for what, one in found.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{what} in {one}" for what, one in words.items())


def precision_warnings(found: Precisions) -> dict[str, list[str]]:
    """Sentence -> stages, for what was not computed in one precision throughout."""
    warnings = {}
    for what, by_precision in found.items():
        if len(by_precision) > 1:
            listed = "; ".join(f"{name}: {', '.join(by_precision[name])}" for name in by_precision)
            sentence = (
                f"{what} was done in different precisions ({listed}), so differences between "
                "stages may be of rounding: run all on one kind of hardware, or name a precision "
                "in the recipe, and they are made anew"
            )
            warnings[sentence] = list(dict.fromkeys(chain(*by_precision.values())))
    return warnings
