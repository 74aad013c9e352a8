"""Collects a report: every finished result of a plan, with intervals and differences.

Only finished steps of this plan are read, so a report never mixes fingerprints. The other modules
of this folder format what is collected here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmarks import gap
from eval.benchmarks.registry import asked, judged_options_of
from eval.benchmarks.results import GRADES
from eval.report.cells import (
    ByStage,
    Result,
    cell_of,
    difference_of,
    differences_at_once,
    results_of,
)
from eval.report.comparable import reads_alike, why_not
from eval.report.costs import cost_charts, cost_summary_of, costs_of
from eval.report.curves import gap_charts, recovery_charts
from eval.report.held_out import held_out_losses
from eval.report.join import joined_facts
from eval.report.precisions import describe_precisions, precision_warnings
from eval.report.provenance import provenance_of
from eval.report.sweeps import sweep_charts
from eval.report.types import Chart, Report, Round, Row
from pipeline.recipe.schema import Source
from pipeline.stages.builder import PlannedStage
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan
    from pipeline.recipe.schema import Recipe
    from pipeline.steps.options import AnswerOptions, GapContextOptions
    from pipeline.steps.record import Records
    from pipeline.steps.spec import Place, StepSpec

_COMPARED = "slope, fixed contexts"  # a measure that is compared beside the benchmark's own
_READ = (artifact.RESULT, artifact.SAMPLES, GRADES)  # the files that a report is made of


def baseline_of(recipe: Recipe) -> str | None:
    """The stage a recipe compares the others with: its `baseline`, else its first SFT stage."""
    methods = {name: stage.method for name, stage in recipe.stages.items()}
    first_sft = next((name for name, method in methods.items() if method == "sft"), None)
    return recipe.baseline or first_sft


def part_of(plan: Plan, names: Sequence[str], baseline: str | None = None) -> Plan:
    """The plan with these stages, what they start from, and the baseline; the same fingerprint.

    Args:
        plan: of a recipe.
        names: of stages, or labels of swept ones.
        baseline: the stage to compare with; by default `baseline_of` the recipe.

    Raises:
        InputError: for an unknown stage.
    """
    baseline = baseline or baseline_of(plan.recipe)
    chosen = set(plan.labels(*names))
    chosen |= {plan.stages[label].siblings.get(baseline or "") for label in chosen} - {None}
    for label in reversed(plan.stages):  # a stage comes after the one it starts from
        if label in chosen:
            chosen |= {plan.stages[label].start} - {None}
    kept = {label: stage for label, stage in plan.stages.items() if label in chosen}
    # Steps that belong to no stage are kept with the first.
    label = next(iter(kept))
    first = (label, plan.seeds_of(label)[0])
    overlaps = [step for steps in plan.overlaps.values() for step in steps]
    all_steps = {**plan.all_steps, first: [*overlaps, *plan.all_steps[first]]}
    parts = [replace(one, stages=_chosen(one, kept)) for one in plan.parts]
    part = replace(plan, stages=kept, all_steps=all_steps, parts=parts)
    return replace(part, steps=part.steps_of(kept))


def collect(
    plan: Plan,
    runs: Path,
    *,
    baseline: str | None = None,
    commands: Sequence[str] = (),
    price_per_hour: float | None = None,
    currency: str = "",
) -> Report:
    """Read the finished steps of a plan into a report. Unfinished stages have empty rows.

    Args:
        plan: of a recipe, of several (`eval.report.join`), or a part of either (`part_of`).
        runs: the folder of all results.
        baseline: the stage to compare the others with; by default `baseline_of` the recipe.
        commands: make the results; the report names them.
        price_per_hour: of a GPU, or of a machine without one.
        currency: of that price.

    Raises:
        InputError: if a record, a result or an answer has changed since it was written.
    """
    recipe = plan.recipe
    baseline = baseline or baseline_of(recipe)
    finished = [step for step in plan.steps if artifact.is_finished(step.directory(runs))]
    records = {step.fingerprint: artifact.read_record(step.directory(runs)) for step in finished}
    for step in finished:
        files = records[step.fingerprint]["files"]
        read = {name: files[name] for name in _READ if name in files}
        artifact.verify_files(step.directory(runs), read)
    rounds, figures, warnings = _figures_and_warnings(plan, finished, records)
    results = {name: _results(plan, runs, name, baseline) for name in recipe.evaluate}
    rows: list[Row] = []
    for name, found in results.items():
        pairs, apart = _pairs(plan, name, baseline)
        rows += _rows(plan, name, found, pairs, baseline)
        warnings |= apart
    if alone := _without_baseline(plan, baseline):
        once = [name for name in recipe.stages if not _without_baseline(plan, name)]
        way_out = f"; --baseline {' or '.join(once)} compares all" if once else ""
        warnings[f"not compared with {baseline}, of which the sweep makes several{way_out}"] = alone
    costs = costs_of(plan, records, baseline)
    held_out, unmeasured = held_out_losses(plan, records)
    return Report(
        recipe=recipe.name,
        task=_of_each(plan, lambda one: one.recipe.task),
        model=_of_each(plan, lambda one: _joined(s.recipe.model for s in one.stages.values())),
        seeds=list(recipe.seeds),
        baseline=baseline,
        judge=_of_each(plan, lambda one: _joined(_judges(one))) or None,
        asked={name: _of_each(plan, partial(_asked, benchmark=name)) for name in recipe.evaluate},
        rows=rows,
        costs=costs,
        overlaps=_overlaps(plan, runs),
        rounds=rounds,
        charts=[
            *_charts_of_each(plan, lambda one: sweep_charts(one, _shown(one, rows), figures)),
            *_charts_of_each(plan, lambda one: gap_charts(one, results)),
            *_charts_of_each(plan, lambda one: recovery_charts(one, results)),
            *held_out,
            *cost_charts(rows, costs, baseline),
        ],
        warnings=warnings | unmeasured | precision_warnings(plan, records),
        precision=describe_precisions(plan, records),
        versions=_merge_versions([record["versions"] for record in records.values()]),
        machines=sorted(
            {f"{record['device']}, host {record['host']}" for record in records.values()}
        ),
        bill=cost_summary_of(plan, records, price_per_hour, currency),
        made=provenance_of(plan, records, commands),
        joined=joined_facts(plan),
        judge_usage={name: used for name in results if (used := _judge_usage(plan, records, name))},
    )


def _chosen(plan: Plan, labels: Iterable[str]) -> dict[str, PlannedStage]:
    return {label: plan.stages[label] for label in labels if label in plan.stages}


def _shown(plan: Plan, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.stage in plan.stages]


def _of_each(plan: Plan, words_of: Callable[[Plan], str]) -> str:
    """Words about a plan; of several recipes those of each, where they differ."""
    said: dict[str, list[str]] = {}
    for part in plan.parts:
        if part.stages and (words := words_of(part)):
            said.setdefault(words, []).append(part.recipe.name)
    if len(said) < 2:
        return next(iter(said), "") or words_of(plan)
    return " and ".join(f"{words} ({', '.join(names)})" for words, names in said.items())


def _charts_of_each(plan: Plan, charts_of: Callable[[Plan], list[Chart]]) -> list[Chart]:
    """The charts of a plan; of several recipes those of each, with its name."""
    if not plan.parts:
        return charts_of(plan)
    return [
        replace(chart, name=f"{chart.name}-{i}", title=f"{chart.title} ({part.recipe.name})")
        for i, part in enumerate(plan.parts, start=1)
        if part.stages
        for chart in charts_of(part)
    ]


def _figures_and_warnings(
    plan: Plan, finished: Sequence[StepSpec], records: Records
) -> tuple[list[Round], dict[str, dict[str, float]], dict[str, list[str]]]:
    """Rounds with their figures, figures by fingerprint, and warnings with the stages concerned."""
    rounds: list[Round] = []
    figures: dict[str, dict[str, float]] = {}
    warnings: dict[str, list[str]] = {}
    needed_by = plan.needed_by()
    for step in finished:
        metrics = records[step.fingerprint]["metrics"]
        if found := metrics.get("figures"):
            figures[step.fingerprint] = found
            stage = needed_by[step.fingerprint][0]
            rounds.append(Round(stage, step.kind, step.title, step.seed, found))
        for warning in metrics.get("warnings", []):
            where = warnings.setdefault(warning, [])
            where += [one for one in needed_by[step.fingerprint] if one not in where]
    return rounds, figures, warnings


def _without_baseline(plan: Plan, baseline: str | None) -> list[str]:
    """Stages that belong to no single point of a swept baseline."""
    if baseline is None:
        return []
    return [label for label, stage in plan.stages.items() if baseline not in stage.siblings]


def _results(plan: Plan, runs: Path, benchmark: str, baseline: str | None) -> ByStage:
    """Results of every stage, and of the stages they are compared with, shown or not."""
    beside = (stage.siblings.get(baseline or "") for stage in plan.stages.values())
    wanted = dict.fromkeys([*plan.stages, *filter(None, beside)])
    return {label: results_of(plan, runs, label, benchmark) for label in wanted}


def _pairs(
    plan: Plan, benchmark: str, baseline: str | None
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Stages with what each is compared with; and why others are not, with the stages concerned."""
    pairs: dict[str, str] = {}
    apart: dict[str, list[str]] = {}
    for label, stage in plan.stages.items():
        # Where the baseline is swept, a stage is compared with what it is at its own points.
        sibling = stage.siblings.get(baseline or "", label)
        if sibling == label:
            continue
        if reason := why_not(plan, label, sibling, benchmark):
            sentence = f"{benchmark}: not compared with {sibling}, {reason}"
            apart.setdefault(sentence, []).append(label)
            continue
        pairs[label] = sibling
        if benchmark == gap.NAME and not reads_alike(plan, label, sibling):
            sentence = f"{benchmark}: {_COMPARED}, not compared with {sibling}, which reads others"
            apart.setdefault(sentence, []).append(label)
    return pairs, apart


def _rows(
    plan: Plan, benchmark: str, found: ByStage, pairs: Mapping[str, str], baseline: str | None
) -> Iterator[Row]:
    own = _own_measure([result for seeds in found.values() for result in seeds.values()])
    both = {label: (found[label], found[sibling]) for label, sibling in pairs.items()}
    primary = differences_at_once(both, own)
    for label, stage in plan.stages.items():
        if not any((label, benchmark, seed) in plan.results for seed in plan.recipe.seeds):
            continue  # only another recipe evaluates it
        published = stage.recipe.published.get(stage.name, {}).get(benchmark)
        results = list(found[label].values())
        counts: Counter[str] = Counter()
        for result in results:
            counts.update(result["counts"])
        names = dict.fromkeys(name for result in results for name in result["measures"])
        names = sorted(names, key=lambda name: name != own)
        cells = {name: cell_of(results, name) for name in names}
        differences = {own: primary.get(label)}
        if label in pairs and reads_alike(plan, label, pairs[label]):
            differences[_COMPARED] = difference_of(*both[label], _COMPARED)
        yield Row(
            stage=label,
            method=stage.options.method,
            benchmark=benchmark,
            n=results[0]["n"] if results else None,
            seeds=len(results),
            measures={name: cell for name, cell in cells.items() if cell is not None},
            differences={name: one for name, one in differences.items() if one is not None},
            counts=dict(counts),
            published="" if published is None else str(published),
            own=own,
            is_baseline=stage.siblings.get(baseline or "") == label,
            start=stage.start or "",
        )


def _own_measure(results: list[Result]) -> str:
    """The primary measure of a benchmark; not what takes its place in a result that lacks it."""
    later = {name for result in results for name in list(result["measures"])[1:]}
    primaries = list(dict.fromkeys(result["primary"] for result in results))
    return next((name for name in primaries if name not in later), "")


def _overlaps(plan: Plan, runs: Path) -> dict[str, dict[str, int]]:
    """What test rows share with training rows; in a sweep over data, the largest overlap."""
    found = {}
    for benchmark, steps in plan.overlaps.items():
        finished = [step.directory(runs) / artifact.RESULT for step in steps]
        finished = [file for file in finished if artifact.is_finished(file.parent)]
        if finished:
            results = [artifact.read_json(file) for file in finished]
            found[benchmark] = max(results, key=lambda result: result["items"])
    return found


def _judge_usage(plan: Plan, records: Records, benchmark: str) -> dict[str, float]:
    """Tokens of the replies of a benchmark's judge at an endpoint, over stages and seeds."""
    steps = {step.fingerprint for (_, name, _), step in plan.results.items() if name == benchmark}
    used: Counter[str] = Counter()
    costs: list[float | None] = []
    for step in steps & records.keys():
        found = records[step]["metrics"].get("judgement", {})
        if "completion_tokens" in found.get("usage", {}):
            used.update(found["usage"])
            costs.append(found.get("cost"))
    known = [cost for cost in costs if cost is not None]
    return {**used, **({"cost": sum(known)} if known and len(known) == len(costs) else {})}


def _judges(plan: Plan) -> Iterator[str]:
    for one in plan.stages.values():
        if one.recipe.judge is not None:
            from eval.judge.step import describe_judge

            yield describe_judge(one.recipe.judge)


def _joined(words: Iterable[str]) -> str:
    """Each different text once: one where all stages agree, several in a sweep."""
    return " or ".join(dict.fromkeys(words))


def _asked(plan: Plan, benchmark: str) -> str:
    """A benchmark's test rows and decoding, from the options of its steps."""
    return _joined(
        _asked_by(plan.stages[label].recipe, step, benchmark)
        for (label, name, _), step in plan.results.items()
        if name == benchmark and label in plan.stages
    )


def _asked_by(recipe: Recipe, step: StepSpec, benchmark: str) -> str:
    answers: StepSpec[AnswerOptions] = step.inputs["answers"]
    contexts: StepSpec[GapContextOptions] | None = step.inputs.get("contexts")
    options = answers.options
    place: Place = asked(step).locations["test"]
    rows = f"{place['source']}/{place['file']}" if place["file"] else place["source"]
    rows += f", split {place['split']}" if place["revision"] and not place["file"] else ""
    words = [
        ", ".join(filter(None, [f"rows of {rows}", Source.model_validate(place).describe_rows]))
    ]
    if contexts is not None:
        rates, temperature = contexts.options["rates"], contexts.options["temperature"]
        listed = ", ".join(f"{rate:g}" for rate in rates)
        words.append(f"contexts at rates {listed}, temperature {temperature:g}; answers to compare")
    if shots := options.get("few_shot"):
        words.append(f"{shots} solved examples before each, no chat template")
    how = "greedy" if options["temperature"] == 0 else f"temperature {options['temperature']:g}"
    if (samples := options["samples"]) > 1:
        how = f"{samples} answers each, {how}"
    words.append(f"{how}, at most {options['max_new_tokens']} tokens")
    if limit := options["max_prompt_length"]:
        words.append(f"prompts cut to {limit} tokens")
    if step.options.get("template"):
        words.append(f"judge's template {judged_options_of(recipe, benchmark).template}")
    return "; ".join(words)


def _merge_versions(versions: list[dict[str, str]]) -> dict[str, str]:
    """Every version that was used, such as {"trl": "1.16.0 and 1.17.0"}."""
    names = dict.fromkeys(name for one in versions for name in one)
    return {
        name: " and ".join(sorted({one[name] for one in versions if name in one})) for name in names
    }
