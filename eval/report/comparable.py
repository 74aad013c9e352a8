"""Whether two stages can be compared on a benchmark: what their grades rest on beside the model.

Within a recipe it is the same: a sweep compares stages at the same point. Two recipes may ask other
rows, or in other words, or grade the answers in another way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from eval.benchmarks import registry
from pipeline.plan.changes import cut
from pipeline.steps.spec import StepSpec

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

# Of how a model computes, which is the model's own (and in `eval.report.precisions`), and of how
# many failures a judge may have.
_LEFT_OUT = {"dtype", "engine", "quantize", "trust_remote_code", "max_errors"}
_OF_A_TEMPLATE = {"chat_template", "chat_template_name", "chat_template_kwargs", "template_date"}
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LONGEST, _MOST = 60, 6


def why_not(plan: Plan, stage: str, baseline: str, benchmark: str) -> str:
    """Why a stage is not compared with the baseline on a benchmark, in words; '' where it is."""
    ours, theirs = (_by_seed(plan, label, benchmark) for label in (stage, baseline))
    if not ours or not theirs:
        return "which is not evaluated on it" if ours else ""
    common = [seed for seed in ours if seed in theirs]
    if not common:
        listed = [", ".join(map(str, seeds)) for seeds in (theirs, ours)]
        return f"with which it shares no seed: {listed[0]} there, {listed[1]} here"
    pair = (stage, baseline)
    models = {one.recipe.model for label, one in plan.stages.items() if label in pair}
    left_out = _LEFT_OUT if len(models) == 1 else _LEFT_OUT | _OF_A_TEMPLATE  # a model's own
    there, here = (_rests_on(results[common[0]], left_out) for results in (theirs, ours))
    found = cut(list(_differing(there, here, "")), _MOST)
    return f"where {', '.join(found)}" if found else ""


def reads_alike(plan: Plan, stage: str, baseline: str) -> bool:
    """Whether `gap` gives two stages the same `fixed` contexts to read."""
    ours, theirs = (
        {seed: _fixed(step) for seed, step in _by_seed(plan, label, "gap").items()}
        for label in (stage, baseline)
    )
    return all(theirs[seed] == ours[seed] for seed in ours if seed in theirs)


def _fixed(result: StepSpec) -> str | None:
    losses = result.inputs.get("fixed")
    return None if losses is None else losses.inputs["contexts"].fingerprint


def _by_seed(plan: Plan, label: str, benchmark: str) -> dict[int, StepSpec]:
    asked = {seed: plan.results.get((label, benchmark, seed)) for seed in plan.recipe.seeds}
    return {seed: step for seed, step in asked.items() if step is not None}


def _rests_on(result: StepSpec, left_out: set[str]) -> dict[str, Any]:
    """Test rows, prompts, decoding, grader and judge, as the steps' identities have them."""
    asked = registry.asked(result)
    rows = {role: asked.inputs[role] for role in ("test", "shots") if role in asked.inputs}
    # Of `gap` the model too: its losses are of tokens, and each model has its own.
    files = {role: one for role, one in result.inputs.items() if not isinstance(one, StepSpec)}
    options = {**result.options, **asked.options}
    own = result.inputs.get("own")
    if isinstance(own, StepSpec) and "beginnings" in own.inputs:  # of `recovery`: cuts, places
        options |= own.inputs["beginnings"].options
    return {**rows, **files, **{key: one for key, one in options.items() if key not in left_out}}


def _differing(theirs: Any, ours: Any, key: str) -> Iterator[str]:
    """Such as 'test.limit is 100 (50 here)'."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in dict.fromkeys([*theirs, *ours]):
            yield from _differing(theirs.get(name), ours.get(name), f"{key}.{name}".strip("."))
    elif theirs != ours:
        there, here = map(_value, (theirs, ours))
        is_long = max(len(there), len(here)) > _LONGEST
        yield f"{key} is another one" if is_long else f"{key} is {there} ({here} here)"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return str(value)[:8] if _DIGEST.fullmatch(str(value)) else str(value)
