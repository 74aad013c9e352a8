"""The chart of held-out losses: where a curve rises again, a stage overfits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from eval.report.types import Cell, Chart, Curve, Point

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

Records = Mapping[str, Mapping[str, Any]]  # fingerprint of a finished step -> its record
_WITHOUT = (
    "no held-out loss recorded: it was trained before eval_strategy asked for the loss on these "
    "rows, and is not trained again for it; delete its step's folder to have that done"
)


def held_out_losses(plan: Plan, records: Records) -> tuple[list[Chart], dict[str, list[str]]]:
    """Return the chart, with a curve for every training, and a warning of those without one."""
    found: dict[str, dict[int, list[Any]]] = {}  # name of a curve -> step -> points of the seeds
    without: dict[str, list[str]] = {}
    steps = [(label, step) for (label, _), steps in plan.stage_steps.items() for step in steps]
    for label, step in steps:
        asked, record = step.runtime_options.get("held_out"), records.get(step.fingerprint)
        if asked is None or record is None or label not in plan.stages:
            continue
        measured = record["metrics"].get("held_out")
        # A finished step keeps its curve when the recipe comes to name other rows.
        if measured is None or record["neutral"]["held_out"]["identity"] != asked["identity"]:
            stages = without.setdefault(_WITHOUT, [])
            stages += [label] if label not in stages else []
            continue
        turn = step.title.partition(", ")[2]  # such as "round 2"
        curve = found.setdefault(", ".join(filter(None, [label, turn])), defaultdict(list))
        for point in measured["curve"]:
            curve[point["step"]].append(point)
    chart = Chart(
        name="held-out-loss",
        benchmark="",
        title="Loss on held-out rows while training",
        x_title="epochs of the training",
        y_title="loss of a reference token, nats (lower is better)",
        curves=[Curve(name, _points(steps)) for name, steps in found.items()],
        note="The references of data.validation. Where a curve rises again, its stage has trained "
        "for too long; its last point is the model that was kept.",
        intervals="the least and the most of the seeds" if len(plan.recipe.seeds) > 1 else "",
        is_long=True,
    )
    return [chart] if found else [], without


def _points(steps: Mapping[int, list[dict[str, Any]]]) -> list[Point]:
    """The mean over seeds at each step, between the least and the most."""
    points = []
    for step, seeds in sorted(steps.items()):
        losses, epoch, n = [one["loss"] for one in seeds], seeds[0]["epoch"], len(seeds)
        spread, each = (stdev(losses), tuple(losses)) if n > 1 else (None, ())
        cell = Cell(mean(losses), min(losses), max(losses), seeds[0]["tokens"], "nats", spread,
                    better="lower", seeds=n, per_seed=each)  # fmt: skip
        points.append(Point(epoch, cell, f"epoch {epoch:g}, step {step}"))
    return points
