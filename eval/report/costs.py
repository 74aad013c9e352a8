"""Time and tokens of stages: of their own steps, and of all steps that their weights came from.

Only what finished steps recorded is counted, each step once in a sum; a step that several stages
share counts in the chain of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from eval.report.types import Chart, Cost, CostSummary, Curve, Point, Row, Spent
from pipeline.steps.spec import StepSpec

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan
    from pipeline.steps.record import Record, Records


def costs_of(plan: Plan, records: Records, baseline: str | None) -> list[Cost]:
    """The cost of every stage, mean over the seeds that have finished it.

    Where the baseline is swept, a stage is compared with what it is at the stage's own points.
    """
    return [
        _cost(plan, records, label, planned.siblings.get(baseline or ""))
        for label, planned in plan.stages.items()
    ]


def _cost(plan: Plan, records: Records, stage: str, baseline: str | None) -> Cost:
    seeds = plan.seeds_of(stage)
    own = {seed: _finished(plan.stage_steps[stage, seed], records) for seed in seeds}
    found = [record for one in own.values() for record in one or []]
    spent = _mean(own.values())
    if spent is None:
        return Cost(stage)
    chains = _chains(plan, records, stage)
    times = None
    if baseline is not None:
        base = _chains(plan, records, baseline)
        both = [seed for seed in seeds if None not in (chains[seed], base.get(seed))]
        ours, theirs = (_mean(one[seed] for seed in both) for one in (chains, base))
        if ours is not None and theirs is not None and theirs.seconds:
            times = ours.seconds / theirs.seconds
    return Cost(
        stage,
        seconds=round(spent.seconds, 1),
        tokens_trained=spent.tokens_trained,
        tokens_generated=spent.tokens_generated,
        padding=_padding(found),
        peak_memory=max((record.get("peak_memory_bytes", 0) for record in found), default=0)
        or None,
        chain=_mean(chains.values()),
        times=times,
    )


def _chains(plan: Plan, records: Records, stage: str) -> dict[int, list[Record] | None]:
    """Seed -> records of all steps its weights came from; None where one is missing."""
    return {
        seed: _finished(_with_inputs(plan.stage_steps[stage, seed]), records)
        for seed in plan.seeds_of(stage)
    }


def _with_inputs(steps: Iterable[StepSpec]) -> list[StepSpec]:
    """The steps and, recursively, their inputs, each once."""
    seen: dict[str, StepSpec] = {}

    def visit(step: StepSpec) -> None:
        if step.fingerprint not in seen:
            seen[step.fingerprint] = step
            for value in step.inputs.values():
                if isinstance(value, StepSpec):
                    visit(value)

    for step in steps:
        visit(step)
    return list(seen.values())


def _finished(steps: Iterable[StepSpec], records: Records) -> list[Record] | None:
    """The records of steps that are all finished, else None."""
    found = [records.get(step.fingerprint) for step in steps]
    known = [record for record in found if record is not None]
    return known if len(known) == len(found) else None


def _mean(seeds: Iterable[list[Record] | None]) -> Spent | None:
    """The mean over finished seeds."""
    finished = [records for records in seeds if records is not None]
    if not finished:
        return None
    total, n = _sum(record for records in finished for record in records), len(finished)
    return Spent(
        seconds=total.seconds / n,
        device_seconds=total.device_seconds / n,
        tokens_trained=round(total.tokens_trained / n),
        tokens_generated=round(total.tokens_generated / n),
    )


def _sum(records: Iterable[Record]) -> Spent:
    spent = Spent(0.0, 0.0, 0, 0)
    for record in records:
        devices = record.get("processes", 1) if _on_gpu(record) else 1
        spent = Spent(
            spent.seconds + record["seconds"],
            spent.device_seconds + record["seconds"] * devices,
            spent.tokens_trained + record["metrics"].get("tokens_trained", 0),
            spent.tokens_generated + record["metrics"].get("tokens_generated", 0),
        )
    return spent


def _on_gpu(record: Record) -> bool:
    return not record["device"].startswith("cpu")


def _padding(records: list[Record]) -> float | None:
    """The share of padding in all positions that training steps read."""
    trained = [
        (metrics["tokens_trained"], metrics["padding_share"])
        for metrics in (record["metrics"] for record in records)
        if "tokens_trained" in metrics and "padding_share" in metrics
    ]
    read = sum(tokens / (1 - padding) for tokens, padding in trained)
    return 1 - sum(tokens for tokens, _ in trained) / read if read else None


def cost_summary_of(
    plan: Plan, records: Records, price_per_hour: float | None, currency: str
) -> CostSummary | None:
    """Time and tokens of all finished steps, each once; None if none is finished."""
    if not records:
        return None
    trains = {step.fingerprint for steps in plan.stage_steps.values() for step in steps}
    training = [record for key, record in records.items() if key in trains]
    evaluation = [record for key, record in records.items() if key not in trains]
    kinds = {"GPU" if _on_gpu(record) else "machine" for record in records.values()}
    device = kinds.pop() if len(kinds) == 1 else "device"
    return CostSummary(_sum(training), _sum(evaluation), device, price_per_hour, currency)


def cost_charts(rows: list[Row], costs: list[Cost], baseline: str | None) -> Iterator[Chart]:
    """Every benchmark's primary measure against the cost of a stage and those it starts from."""
    places = {cost.stage: cost.times for cost in costs}
    title, note = f"wall time, times {baseline}", f" One time {baseline} is the cost of {baseline}."
    if not any(places.values()):
        places = {cost.stage: cost.chain and cost.chain.seconds / 3600 for cost in costs}
        title, note = "wall time, hours", ""
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        curves: dict[str, list[Point]] = {}
        hidden: list[str] = []
        name = unit = ""
        for row in rows:
            place, cell = places.get(row.stage), row.primary
            if row.benchmark != benchmark or cell is None:
                continue
            if place is None:
                hidden.append(row.stage)
                continue
            curves.setdefault(row.method, []).append(Point(place, cell, row.stage))
            name, unit = row.own, cell.unit
        if sum(map(len, curves.values())) < 2:
            continue
        without = f" Without a cost to compare: {', '.join(hidden)}." if hidden else ""
        yield Chart(
            name=f"{benchmark}-cost",
            benchmark=benchmark,
            title=f"{name} against cost",
            x_title=title,
            y_title=f"{name}, {unit}",
            curves=[Curve(method, points) for method, points in curves.items()],
            note="Cost: training and row-writing of a stage and of those it starts from, without "
            f"evaluation.{note}{without}",
            is_joined=False,
        )
