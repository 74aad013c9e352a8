"""The precision of a report's steps, and a warning if stages that are compared differ in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from pipeline.hardware.precision import Precision, of_earlier_version, read_precision

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan
    from pipeline.steps.record import Records
    from pipeline.steps.spec import StepSpec


def describe_precisions(plan: Plan, records: Records) -> str:
    """Such as 'float32', or 'training in bfloat16, reading in float32'; '' for none."""
    found: dict[str, set[str]] = {}
    for step, precision in _computed(plan, records):
        found.setdefault(_what(step), set()).add(precision.compute)
    words = {what: " and ".join(sorted(several)) for what, several in found.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{what} in {one}" for what, one in words.items())


def precision_warnings(plan: Plan, records: Records) -> dict[str, list[str]]:
    """Warning -> stages, for steps with the same options that ran in different precisions."""
    asked: dict[tuple[str, ...], dict[str, list[str]]] = {}
    needed_by = plan.needed_by()
    for step, precision in _computed(plan, records):
        stages = asked.setdefault(_asked(step), {}).setdefault(precision.short, [])
        stages += [one for one in needed_by[step.fingerprint] if one not in stages]
    warnings = {}
    for (what, *_), by_precision in asked.items():
        if len(by_precision) > 1:
            listed = "; ".join(f"{name}: {', '.join(by_precision[name])}" for name in by_precision)
            sentence = (
                f"{what} was done in different precisions ({listed}), so differences between "
                "stages may come from rounding: run all on one kind of hardware, or name a "
                "precision in the recipe, and they run again"
            )
            warnings[sentence] = list(dict.fromkeys(chain(*by_precision.values())))
    return warnings


def _computed(plan: Plan, records: Records) -> Iterator[tuple[StepSpec, Precision]]:
    """The finished steps that ran the recipe's model, and what they computed in."""
    for step in plan.steps:
        if step.fingerprint in records and "dtype" in step.options:
            noted = read_precision(records[step.fingerprint].get("precision"))
            yield step, noted or of_earlier_version(step.options)


def _what(step: StepSpec) -> str:
    return "training" if step.kind == "train" else "reading"


def _asked(step: StepSpec) -> tuple[str, ...]:
    """What decides a step's precision beside the hardware."""
    options = step.options
    trainer = options.get("trainer", {})
    given = (options["dtype"], trainer.get("bf16"), trainer.get("fp16"), bool(options.get("lora")))
    return (_what(step), *map(str, given))
