"""The chart of held-out losses: where a curve rises again, a stage overfits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from eval.report.types import Cell, Chart, Curve, Point
from pipeline.steps.spec import StepSpec

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

Records = Mapping[str, Mapping[str, Any]]  # fingerprint of a finished step -> its record


def held_out_charts(plan: Plan, records: Records) -> list[Chart]:
    """The chart, with a curve for every training; none where nothing was measured."""
    measured: dict[str, list[list[dict[str, Any]]]] = {}  # curve's name -> the points of each seed
    for label, _, step in _asked(plan):
        if curve := _curve_of(step, records):
            turn = step.title.partition(", ")[2]  # such as "round 2"
            measured.setdefault(", ".join(filter(None, [label, turn])), []).append(curve)
    if not measured:
        return []
    several = any(len(seeds) > 1 for seeds in measured.values())
    return [
        Chart(
            name="held-out-loss",
            benchmark="",
            title="Loss on held-out rows while training",
            x_title="epochs of the training",
            y_title="loss of a reference token, nats (lower is better)",
            curves=[Curve(name, _points(seeds)) for name, seeds in measured.items()],
            note="The references of data.validation, which no stage trains on. Where a curve rises "
            "again, its stage has trained for too long; its last point is the model that was kept.",
            intervals="the least and the most of the seeds" if several else "",
            is_long=True,
        )
    ]


def without_held_out_loss(plan: Plan, records: Records) -> dict[str, list[str]]:
    """A warning, with its stages, of finished trainings that have no curve on these rows."""
    stages = [
        label
        for label, _, step in _asked(plan)
        if step.fingerprint in records and not _curve_of(step, records)
    ]
    words = (
        "no held-out loss recorded: this was trained before eval_strategy asked for one on these "
        "rows, which changes no weight and so trains nothing again; delete its folder to have it"
    )
    return {words: list(dict.fromkeys(stages))} if stages else {}


def _asked(plan: Plan) -> Iterator[tuple[str, int, StepSpec]]:
    """The trainings whose loss the recipe wants measured, with stage and seed."""
    for label in plan.stages:
        for seed in plan.recipe.seeds:
            for step in plan.stage_steps[label, seed]:
                if "held_out" in step.runtime_options:
                    yield label, seed, step


def _curve_of(step: StepSpec, records: Records) -> list[dict[str, Any]]:
    """The points of a finished step, if they are of the rows that the recipe names now."""
    record = records.get(step.fingerprint, {})
    measured_on = record.get("neutral", {}).get("held_out", {}).get("identity")
    same = measured_on == step.runtime_options["held_out"]["identity"]
    return record["metrics"].get("held_out", {}).get("curve", []) if record and same else []


def _points(seeds: list[list[dict[str, Any]]]) -> list[Point]:
    """The mean over seeds at each step."""
    found: dict[int, list[dict[str, Any]]] = {}
    for curve in seeds:
        for point in curve:
            found.setdefault(point["step"], []).append(point)
    return [
        Point(
            found[step][0]["epoch"],
            _cell([point["loss"] for point in found[step]], found[step][0]["tokens"]),
            f"epoch {found[step][0]['epoch']:g}, step {step}",
        )
        for step in sorted(found)
    ]


def _cell(losses: list[float], tokens: int) -> Cell:
    return Cell(
        value=mean(losses),
        low=min(losses),
        high=max(losses),
        n=tokens,
        unit="nats",
        spread=stdev(losses) if len(losses) > 1 else None,
        better="lower",
        seeds=len(losses),
        per_seed=tuple(losses) if len(losses) > 1 else (),
    )
