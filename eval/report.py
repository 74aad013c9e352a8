"""What a recipe's table is made of: every finished result, with intervals and differences.

Only finished steps of this very plan are read, so a report never mixes fingerprints. How it looks
is the matter of `eval.report_text` and `eval.report_html`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks import asked, judged_options_of
from eval.report_cells import cell_of, difference_of, results_of
from eval.report_curves import gap_charts
from eval.report_types import Cost, Report, Round, Row
from pipeline import artifact

if TYPE_CHECKING:
    from pipeline.plan import Plan

_READ = (artifact.RESULT, artifact.SAMPLES)  # what reports are made of


def collect(plan: Plan, runs: Path, *, baseline: str | None = None) -> Report:
    """Read the finished steps of a plan into a report. Unfinished stages have empty rows.

    Args:
        plan: of a recipe.
        runs: the folder of all results.
        baseline: the stage to compare the others with; by default the first SFT stage.

    Raises:
        InputError: when a record, a result or an answer is not as it was written.
    """
    recipe = plan.recipe
    methods = {name: stage.method for name, stage in recipe.stages.items()}
    first_sft = next((name for name, method in methods.items() if method == "sft"), None)
    baseline = baseline or first_sft
    finished = [step for step in plan.steps if artifact.is_finished(step.directory(runs))]
    records = [artifact.read_record(step.directory(runs)) for step in finished]
    for step, record in zip(finished, records, strict=True):
        read = {name: record["files"][name] for name in _READ if name in record["files"]}
        artifact.verify_files(step.directory(runs), read)
    rounds: list[Round] = []
    warnings: dict[str, list[str]] = {}
    for step, record in zip(finished, records, strict=True):
        metrics = record["metrics"]
        if figures := metrics.get("figures"):
            rounds.append(Round(step.stage, step.kind, step.title, step.seed, figures))
        for warning in metrics.get("warnings", []):
            where = warnings.setdefault(warning, [])
            where += [step.stage] if step.stage not in where else []
    return Report(
        recipe=recipe.name,
        task=recipe.task,
        model=recipe.model,
        seeds=list(recipe.seeds),
        baseline=baseline,
        judge=_judge(plan),
        asked={name: _asked(plan, name) for name in recipe.evaluate},
        rows=[
            _row(plan, runs, stage, benchmark, baseline)
            for benchmark in recipe.evaluate
            for stage in recipe.stages
        ],
        costs=[_cost(plan, runs, stage) for stage in recipe.stages],
        overlaps={
            name: artifact.read_json(step.directory(runs) / artifact.RESULT)
            for name, step in plan.overlaps.items()
            if artifact.is_finished(step.directory(runs))
        },
        rounds=rounds,
        charts=gap_charts(plan, runs),
        warnings=warnings,
        versions=_union([record["versions"] for record in records]),
        machines=sorted({f"{record['device']}, host {record['host']}" for record in records}),
    )


def _row(plan: Plan, runs: Path, stage: str, benchmark: str, baseline: str | None) -> Row:
    ours = results_of(plan, runs, stage, benchmark)
    published = plan.recipe.published.get(stage, {}).get(benchmark)
    fields: dict[str, Any] = {
        "stage": stage,
        "method": plan.recipe.stages[stage].method,
        "benchmark": benchmark,
        "published": "" if published is None else str(published),
    }
    if not ours:
        return Row(**fields)
    results = list(ours.values())
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result["counts"])
    difference = None
    if baseline is not None and stage != baseline:
        difference = difference_of(ours, results_of(plan, runs, baseline, benchmark))
    names = dict.fromkeys(name for result in results for name in result["measures"])
    return Row(
        **fields,
        n=results[0]["n"],
        seeds=len(results),
        measures={name: cell for name in names if (cell := cell_of(results, name)) is not None},
        difference=difference,
        counts=dict(counts),
    )


def _cost(plan: Plan, runs: Path, stage: str) -> Cost:
    totals = []
    for seed in plan.recipe.seeds:
        directories = [step.directory(runs) for step in plan.stage_steps[stage, seed]]
        if all(artifact.is_finished(directory) for directory in directories):
            totals.append([artifact.read_record(directory) for directory in directories])
    if not totals:
        return Cost(stage)
    records = [record for seed_records in totals for record in seed_records]
    tokens = {
        name: round(sum(record["metrics"].get(name, 0) for record in records) / len(totals))
        for name in ("tokens_trained", "tokens_generated")
    }
    seconds = sum(record["seconds"] for record in records) / len(totals)
    return Cost(stage, seconds=round(seconds, 1), **tokens, padding=_padding(records))


def _padding(records: list[dict[str, Any]]) -> float | None:
    """The share of padding in what all training steps read."""
    found = [record["metrics"] for record in records if "padding_share" in record["metrics"]]
    tokens = sum(one["tokens_trained"] for one in found)
    read = sum(one["tokens_trained"] / (1 - one["padding_share"]) for one in found)
    return 1 - tokens / read if read else None


def _judge(plan: Plan) -> str | None:
    if plan.recipe.judge is None:
        return None
    from eval.judging import judge_words

    return judge_words(plan.recipe.judge)


def _asked(plan: Plan, benchmark: str) -> str:
    """Which rows a benchmark asked and how, from the steps that did; the same in every stage."""
    step = next(step for (_, name, _), step in plan.results.items() if name == benchmark)
    answers = step.inputs["answers"]
    contexts = step.inputs.get("contexts")
    options, place = answers.options, asked(step).places["test"]
    rows = f"{place['source']}/{place['file']}" if place["file"] else place["source"]
    rows += f", split {place['split']}" if place["revision"] and not place["file"] else ""
    words = [f"rows of {rows}" + (f", the first {place['limit']}" if place["limit"] else "")]
    if contexts is not None:
        rates, temperature = contexts.options["rates"], contexts.options["temperature"]
        listed = ", ".join(f"{rate:g}" for rate in rates)
        words.append(f"contexts at rates {listed}, temperature {temperature:g}; answers to compare")
    if shots := options.get("few_shot"):
        words.append(f"{shots} solved examples before each, no chat template")
    how = "greedy" if options["temperature"] == 0 else f"temperature {options['temperature']:g}"
    words.append(f"{how}, at most {options['max_new_tokens']} tokens")
    if limit := options["max_prompt_length"]:
        words.append(f"prompts cut to {limit} tokens")
    if step.options.get("template"):
        words.append(f"judge's template {judged_options_of(plan.recipe, benchmark).template}")
    return "; ".join(words)


def _union(versions: list[dict[str, str]]) -> dict[str, str]:
    """Every version that took part, such as {"trl": "1.16.0 and 1.17.0"}."""
    names = dict.fromkeys(name for one in versions for name in one)
    return {
        name: " and ".join(sorted({one[name] for one in versions if name in one})) for name in names
    }
