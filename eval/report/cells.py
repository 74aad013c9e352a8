"""From stored scores to means and differences, over seeds and examples."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from eval.report.types import Cell, Difference
from eval.stats.measures import scale_of
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan

Result = dict[str, Any]
ByStage = dict[str, dict[int, Result]]  # label -> seed -> a finished result


def results_of(plan: Plan, runs: Path, stage: str, benchmark: str) -> dict[int, Result]:
    """Finished results of a stage, by seed."""
    found = {}
    for seed in plan.recipe.seeds:
        step = plan.results[stage, benchmark, seed]
        if artifact.is_finished(step.directory(runs)):
            found[seed] = artifact.read_json(step.directory(runs) / artifact.RESULT)
    return found


def cell_of(results: list[Result], name: str) -> Cell | None:
    """The mean of a measure over the seeds that have it; None if they share no scored example."""
    having = [result for result in results if name in result["measures"]]
    measures = [result["measures"][name] for result in having]
    first = measures[0]
    better = first.get("better", "higher")
    if len(measures) == 1:
        numbers = (first["value"], first["low"], first["high"])
        return Cell(*numbers, first["n"], first["unit"], better=better)
    from eval.stats.intervals import interval_of_replicates, mean_over_seeds, wilson_interval

    if "replicates" in first:
        values = [measure["value"] for measure in measures]
        interval = interval_of_replicates([measure["replicates"] for measure in measures])
        numbers = (mean(values), interval.low, interval.high)
        return Cell(*numbers, first["n"], "%", stdev(values), seeds=len(values))
    columns = _on_common_ids([_scores(result, name) for result in having])
    if not columns[0]:
        return None
    summary = mean_over_seeds(columns)
    interval = summary.interval
    if summary.mean in (0.0, 1.0) and first["unit"] == "%":
        # No spread for a bootstrap to find. The seeds share their examples, so n is not multiplied.
        interval = wilson_interval(round(summary.mean * summary.n_examples), summary.n_examples)
    scale = scale_of(first["unit"])
    value, low, high = (scale * one for one in (summary.mean, interval.low, interval.high))
    spread, n = scale * (summary.standard_deviation or 0.0), summary.n_examples
    return Cell(value, low, high, n, first["unit"], spread, better, summary.n_seeds)


def difference_of(
    ours: dict[int, Result], baseline: dict[int, Result], name: str
) -> Difference | None:
    """The difference in a measure on the seeds and examples that both stages have; None if none."""
    pairs = [
        (ours[seed], baseline[seed])
        for seed in ours
        if seed in baseline
        and name in ours[seed]["measures"]
        and name in baseline[seed]["measures"]
    ]
    if not pairs:
        return None
    is_mean = "scores" in pairs[0][0]["measures"][name]
    return (_difference_of_means if is_mean else _difference_of_replicates)(pairs, name)


def _difference_of_means(pairs: list[tuple[Result, Result]], name: str) -> Difference | None:
    from eval.stats.intervals import mean_over_seeds, paired_difference
    from eval.stats.seeds import p_over_seeds

    scores = [(_scores(ours, name), _scores(baseline, name)) for ours, baseline in pairs]
    common = set.intersection(*(set(one) for pair in scores for one in pair))
    ids = [example for example in scores[0][0] if example in common]
    if not ids:
        return None
    differences = [[ours[i] - theirs[i] for i in ids] for ours, theirs in scores]
    p_value = None
    if len(scores) == 1:
        found = paired_difference(*([one[example] for example in ids] for one in scores[0]))
        value, interval, p_value = found.difference, found.interval, found.p_value
    else:
        summary = mean_over_seeds(differences)
        value, interval = summary.mean, summary.interval
    p_value = p_over_seeds(differences) if p_value is None else p_value
    first = pairs[0][0]["measures"][name]
    scale = scale_of(first["unit"])
    numbers = (scale * value, scale * interval.low, scale * interval.high)
    better = first.get("better", "higher")
    return Difference(*numbers, len(ids), p_value, len(pairs), first["unit"], better)


def _difference_of_replicates(pairs: list[tuple[Result, Result]], name: str) -> Difference | None:
    from eval.stats.intervals import interval_of_replicates
    from eval.stats.seeds import p_of_replicates

    if any(ours["ids"] != baseline["ids"] for ours, baseline in pairs):
        return None  # resamples of different examples are not paired
    measures = [(ours["measures"][name], theirs["measures"][name]) for ours, theirs in pairs]
    values = [ours["value"] - theirs["value"] for ours, theirs in measures]
    differences = [
        [x - y for x, y in zip(ours["replicates"], theirs["replicates"], strict=True)]
        for ours, theirs in measures
    ]
    interval = interval_of_replicates(differences)
    n = min(measure["n"] for pair in measures for measure in pair)
    p_value = p_of_replicates(values, differences, n)
    return Difference(
        sum(values) / len(values), interval.low, interval.high, n, p_value, len(pairs)
    )


def _scores(result: Result, name: str) -> dict[Any, float]:
    """Example id -> score, without the examples that have none."""
    scores = zip(result["ids"], result["measures"][name]["scores"], strict=True)
    return {example: float(score) for example, score in scores if score is not None}


def _on_common_ids(columns: list[dict[Any, float]]) -> list[list[float]]:
    """Scores of the examples that every column has, in the same order."""
    common = [example for example in columns[0] if all(example in one for one in columns[1:])]
    return [[column[example] for example in common] for column in columns]
