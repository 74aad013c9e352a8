"""From stored scores to means and differences, over seeds and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmarks.results import Result
from eval.report.types import Cell, Difference
from eval.stats.holm import holm
from eval.stats.measures import Measure, Scored, is_right_or_wrong, scale_of
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

ByStage = dict[str, dict[int, Result]]  # label -> seed -> a finished result


def results_of(plan: Plan, runs: Path, stage: str, benchmark: str) -> dict[int, Result]:
    """Finished results of a stage, by seed."""
    found = {}
    for seed in plan.recipe.seeds:
        step = plan.results.get((stage, benchmark, seed))
        if step is not None and artifact.is_finished(step.directory(runs)):
            found[seed] = artifact.read_json(step.directory(runs) / artifact.RESULT)
    return found


def cell_of(results: Sequence[Scored], name: str) -> Cell | None:
    """The mean of a measure over the seeds that have it; None if they share no scored example."""
    having = [result for result in results if name in result["measures"]]
    measures = [result["measures"][name] for result in having]
    first = measures[0]
    better = first.get("better", "higher")
    if "replicates" in first:
        return _cell_of_replicates(measures)
    columns = _on_common_ids([_scores(result, name) for result in having])
    if not columns[0]:
        return None
    from eval.stats.intervals import wilson_interval
    from eval.stats.seeds import mean_over_seeds

    are_binary = _are_binary(columns, first["unit"])
    verdicts = are_binary or first.get("verdicts", False)
    found = mean_over_seeds(columns, verdicts=verdicts, shares=first["unit"] == "%")
    low, high = found.low, found.high
    if are_binary and all(column == columns[0] for column in columns):  # one table, once or often
        wilson = wilson_interval(int(sum(columns[0])), len(columns[0]))
        low, high = wilson.low, wilson.high
    scale = scale_of(first["unit"])
    numbers = (scale * found.value, scale * low, scale * high)
    spread = None if found.spread is None else scale * found.spread
    n, seeds = found.n_examples, found.n_seeds
    each = [scale * sum(column) / len(column) for column in columns] if seeds > 1 else []
    return Cell(*numbers, n, first["unit"], spread, better, seeds, tuple(each))


def _cell_of_replicates(measures: list[Measure]) -> Cell:
    from eval.stats.seeds import estimate_of_replicates

    first, n = measures[0], min(measure["n"] for measure in measures)
    if len(measures) == 1:
        return Cell(first["value"], first["low"], first["high"], n)
    values = [measure["value"] for measure in measures]
    found = estimate_of_replicates(values, list(map(_replicates, measures)), n)
    return Cell(*found[:3], n, spread=found.spread, seeds=found.n_seeds, per_seed=tuple(values))


def difference_of(
    ours: dict[int, Result], baseline: dict[int, Result], name: str
) -> Difference | None:
    """The difference in a measure on the seeds and examples that both stages have; None if none."""
    pairing = _pair(ours, baseline, name)
    return None if pairing is None else _difference(pairing, level=0.95)


def differences_at_once(
    pairs: dict[str, tuple[dict[int, Result], dict[int, Result]]], name: str
) -> dict[str, Difference]:
    """The differences of several stages in one measure, which are judged together.

    p is adjusted for their number (Holm). Each interval is at the level that makes all of them hold
    at once in 95 % (Bonferroni); where Holm's second and later steps see what this misses, the
    interval ends at 0.
    """
    found = {label: _pair(*pair, name) for label, pair in pairs.items()}
    pairings = {label: one for label, one in found.items() if one is not None}
    level = 1 - 0.05 / max(len(pairings), 1)
    alone = {label: _difference(one, level=level) for label, one in pairings.items()}
    if len(alone) < 2:
        return alone
    adjusted = holm([one.p_value for one in alone.values()])
    return {
        label: _judged_at_once(one, p_adjusted, len(alone))
        for (label, one), p_adjusted in zip(alone.items(), adjusted, strict=True)
    }


def _judged_at_once(found: Difference, p_adjusted: float, compared: int) -> Difference:
    low, high = found.low, found.high
    if p_adjusted < 0.05:
        low, high = (max(low, 0.0), high) if found.value > 0 else (low, min(high, 0.0))
    return replace(found, low=low, high=high, compared=compared, p_adjusted=p_adjusted)


@dataclass(frozen=True)
class _Pairing:
    """A measure of two stages on what both have.

    Attributes:
        measure: the measure as a result holds it, for its unit and kind.
        ours, baseline: per seed, scores of the same examples, or replicates on the same resamples.
        values: per seed the difference, of a measure that is no mean of scores; else None.
        n: examples.
    """

    measure: Measure
    ours: list[list[float]]
    baseline: list[list[float]]
    values: list[float] | None
    n: int

    @property
    def differences(self) -> list[list[float]]:
        """Per seed, ours minus the baseline's."""
        return [
            [x - y for x, y in zip(ours, theirs, strict=True)]
            for ours, theirs in zip(self.ours, self.baseline, strict=True)
        ]


def _pair(ours: dict[int, Result], baseline: dict[int, Result], name: str) -> _Pairing | None:
    pairs = [
        (ours[seed], baseline[seed])
        for seed in ours
        if seed in baseline
        and name in ours[seed]["measures"]
        and name in baseline[seed]["measures"]
    ]
    if not pairs:
        return None
    measures = [[result["measures"][name] for result in pair] for pair in pairs]
    first = measures[0][0]
    if "scores" in first:
        columns = _on_common_ids([_scores(result, name) for pair in pairs for result in pair])
        n = len(columns[0])
        return _Pairing(first, columns[::2], columns[1::2], None, n) if n else None
    if any(ours["ids"] != baseline["ids"] for ours, baseline in pairs):
        return None  # resamples of different examples are not paired
    replicates = [[_replicates(pair[side]) for pair in measures] for side in (0, 1)]
    values = [ours["value"] - theirs["value"] for ours, theirs in measures]
    n = min(measure["n"] for pair in measures for measure in pair)
    return _Pairing(first, replicates[0], replicates[1], values, n)


def _difference(pairing: _Pairing, *, level: float) -> Difference:
    from eval.stats.intervals import mcnemar_exact
    from eval.stats.seeds import difference_over_seeds, estimate_of_replicates

    unit, scale, mcnemar = pairing.measure["unit"], 1, None
    values = pairing.values
    if values is not None:
        found = estimate_of_replicates(values, pairing.differences, pairing.n, level=level)
    else:
        scale = scale_of(unit)
        is_binary = _are_binary([*pairing.ours, *pairing.baseline], unit)
        verdicts = is_binary or pairing.measure.get("verdicts", False)
        differences = pairing.differences
        values = [scale * sum(one) / len(one) for one in differences]
        found = difference_over_seeds(differences, verdicts=verdicts, level=level)
        if is_binary and len(differences) == 1:
            (one,) = differences
            mcnemar = mcnemar_exact(sum(d > 0 for d in one), sum(d < 0 for d in one))
    return Difference(
        value=scale * found.value,
        low=scale * found.low,
        high=scale * found.high,
        n=found.n_examples,
        p_value=found.p_value,
        seeds=found.n_seeds,
        unit=unit,
        better=pairing.measure.get("better", "higher"),
        detectable=scale * found.detectable,
        mcnemar=mcnemar,
        per_seed=tuple(values) if len(values) > 1 else (),
    )


def _are_binary(columns: list[list[float]], unit: str) -> bool:
    return all(is_right_or_wrong(column, unit) for column in columns)


def _replicates(measure: Measure) -> list[float]:
    assert "replicates" in measure  # where one result of a measure has them, all have
    return measure["replicates"]


def _scores(result: Scored, name: str) -> dict[int, float]:
    """Example id -> score, without the examples that have none."""
    measure = result["measures"][name]
    assert "scores" in measure  # else it has replicates
    scores = zip(result["ids"], measure["scores"], strict=True)
    return {example: float(score) for example, score in scores if score is not None}


def _on_common_ids(columns: list[dict[int, float]]) -> list[list[float]]:
    """Scores of the examples that every column has, in the same order."""
    common = [example for example in columns[0] if all(example in one for one in columns[1:])]
    return [[column[example] for example in common] for column in columns]
