"""The model card of a finished stage: what it is, what made it, and its numbers.

Every number comes with its n and 95 % interval. Texts of recipes and data are escaped, so that they
format nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.benchmarks.registry import asked
from eval.report.collect import collect
from eval.report.cost_summary import OWN_HEAD, format_own
from eval.report.text import (
    benchmark_notes,
    format_cell,
    format_difference,
    format_outcomes,
    interval_note,
    one_seed_note,
)
from eval.report.types import Report, Row
from pipeline.markdown import block, code, inline, table
from pipeline.plan.plan import make_plan
from pipeline.publish.card_metadata import HUB_ID, hub_base, metadata, method_name
from pipeline.publish.portable import (
    chain,
    data_of,
    local_names,
    made_by,
    plain_name,
    portable_recipe,
)
from pipeline.publish.stage import FinishedStage
from pipeline.recipe.registry import method_module
from pipeline.recipe.schema import Source
from pipeline.steps import artifact
from pipeline.steps.identity import (
    EMBEDDED_HUB_ID,
    EMBEDDED_MODEL,
    EMBEDDED_PACKAGE,
    OutsideIdentity,
)
from pipeline.steps.spec import Place, StepSpec

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_PAPER = (
    "[Cen et al. 2025, Bridging the Training-Inference Gap in LLMs by Leveraging Self-Generated "
    "Tokens](https://arxiv.org/abs/2410.14655)"
)
_DPO = "[DPO, Rafailov et al. 2023](https://arxiv.org/abs/2305.18290)"
# Method -> two sentences.
METHODS = {
    "sft": "Supervised fine-tuning: the model is trained to give the reference answer. The loss "
    "covers the answer only.",
    "neftune": "Supervised fine-tuning on the reference answers, with uniform noise added to the "
    "embeddings while training. The method is NEFTune "
    "([Jain et al. 2023](https://arxiv.org/abs/2310.05914)).",
    "bash": "Batch-scheduled sampling: besides the reference answers the model is trained on "
    "contexts in which some of their tokens are replaced by its own, and learns to go on with the "
    f"reference. The method is BASH of {_PAPER}.",
    "rac": "Reference-answer-based correction: besides the reference answers the model is trained "
    "on its own answers, where the label at each token is what it would say there had it seen the "
    f"reference. The method is RAC of {_PAPER}.",
    "spin": "Self-play: the model is trained to prefer the reference answer to its own, with the "
    "model of the round before as reference model. The method is SPIN "
    f"([Chen et al. 2024](https://arxiv.org/abs/2401.01335)), its loss that of {_DPO}.",
    "dpo": "Direct preference optimisation: the model is trained to prefer the chosen to the "
    "rejected answer of each pair. The reference model is the stage it starts from "
    f"({_DPO}).",
}


def below_runs(text: str, runs: Path) -> str:
    """Return a text in which paths below the runs folder begin with `runs/`, wherever it lies."""
    return text.replace(f"{runs.resolve()}/", "runs/")


def make_card(found: FinishedStage, repository: str) -> Any:
    """Return the card of a finished stage as a `huggingface_hub.ModelCard`.

    Args:
        found: the stage.
        repository: the hub id that the card is for.

    Raises:
        InputError: when a result was changed after it was written.
    """
    from huggingface_hub import ModelCard

    recipe, report, steps = found.plan.recipe, _report(found), chain(found)
    rows = [row for row in report.rows if row.stage == found.name]
    costs = {cost.stage: cost for cost in report.costs}
    records = [artifact.read_record(step.directory(found.runs)) for _, step in made_by(found)]
    devices = "; ".join(sorted({inline(record["device"]) for record in records}))
    names = local_names(found)

    def plain(text: str) -> str:
        for written, name in names.items():
            text = text.replace(written, name)
        return inline(below_runs(text, found.runs))

    warnings = [
        f"- {', '.join(map(code, owners))}: {plain(sentence)}"
        for sentence, stages in report.warnings.items()
        if (owners := [name for name in stages if name in steps])
    ]
    notes = [plain(note) for row in rows for note in benchmark_notes(report, row.benchmark)]
    return ModelCard.from_template(
        metadata(found, repository, rows),
        template_path=str(_TEMPLATE),
        title=inline(repository),
        repository=repository,
        base=_describe_base(found),
        chain=[code(name) for name in steps],
        recipe_name=code(recipe.name),
        seed=found.seed,
        is_adapter=found.model.adapter is not None,
        quantize=recipe.quantize,
        embedded=recipe.model == EMBEDDED_MODEL and (EMBEDDED_PACKAGE, EMBEDDED_HUB_ID),
        method=_method(found),
        numbers="\n\n".join([_numbers(report, rows), *_several_seeds(found), *notes]),
        data=_data(found),
        training=table(OWN_HEAD, [[code(name), *format_own(costs[name])] for name in steps]),
        tokens_trained=sum(costs[name].tokens_trained or 0 for name in steps),
        versions=", ".join(f"{inline(name)} {inline(v)}" for name, v in report.versions.items()),
        devices=f"{devices}, computed in {report.precision}" if report.precision else devices,
        fingerprint=found.step.fingerprint,
        warnings="\n".join(warnings),
        recipe=block(portable_recipe(found), "yaml"),
    )


def _report(found: FinishedStage) -> Report:
    """The report on this seed, compared with the stage that this one starts from."""
    recipe = found.plan.recipe
    untrained = (name for name, stage in recipe.stages.items() if stage.method == "base")
    baseline = recipe.stages[found.name].start or next(untrained, None)
    plan = make_plan(recipe.model_copy(update={"seeds": [found.seed]}))
    report = collect(plan, found.runs, baseline=baseline)
    if baseline is None:  # nothing comes before the stage
        rows = [replace(row, differences={}) for row in report.rows]
        report = replace(report, baseline=None, rows=rows)
    judge = recipe.judge
    if judge is not None and judge.engine == "openai":
        from eval.judge.step import describe_judge

        # Its address may be a private machine's.
        public = judge.model_copy(update={"base_url": "an OpenAI-compatible endpoint"})
        report = replace(report, judge=describe_judge(public))
    return report


def _numbers(report: Report, rows: list[Row]) -> str:
    """A table of every measure with its interval and n, and the difference to the start."""
    compared = any(row.difference for row in rows)
    versus = [f"vs {code(str(report.baseline))}"] if compared else []
    body = []
    for row in rows:
        # Difference and outcomes are those of the first measure.
        differences, outcomes = [format_difference(row.difference)], format_outcomes(row)
        for name, cell in row.measures.items():
            value = format_cell(cell, cell.n)
            differences = differences if compared else []
            body.append([row.benchmark, name, value, *differences, f"{cell.n:,}", outcomes])
            differences, outcomes = [""], ""
    if not body:
        return "Not evaluated yet."
    head = ["benchmark", "measure", "value", *versus, "n", "outcomes"]
    notes = [interval_note(report if compared else replace(report, baseline=None))]
    notes += [one_seed_note(report)] if compared else []
    return f"{table(head, body)}\n\n{' '.join(notes)}"


def _several_seeds(found: FinishedStage) -> Iterator[str]:
    """The same over all seeds of the recipe, where more than one is finished."""
    if len(found.plan.recipe.seeds) == 1:
        return
    for row in collect(found.plan, found.runs).rows:
        if row.stage == found.name and (cell := row.primary) is not None and cell.seeds > 1:
            yield (
                f"Over {cell.seeds} seeds of this stage, {row.benchmark} {row.own}: "
                f"{format_cell(cell, cell.n)}, n {cell.n:,} in each, after ± the standard "
                "deviation of seeds; these weights are one of them."
            )


def _data(found: FinishedStage) -> str:
    """A table of what was trained and evaluated on, each source once."""
    seen: dict[tuple[str, str], list[str]] = {}
    for step, role in data_of(found):
        metrics = artifact.read_record(step.directory(found.runs))["metrics"]
        rows = metrics.get("data", {}).get("rows", metrics.get("answers"))
        cells = [role, *_describe_source(step, role), "" if rows is None else f"{rows:,}"]
        seen.setdefault((role, artifact.fingerprint(step.inputs[role])), cells)
    for benchmark in found.plan.recipe.evaluate:
        result = found.plan.results[found.name, benchmark, found.seed]
        if artifact.is_finished(folder := result.directory(found.runs)):
            n = artifact.read_json(folder / artifact.RESULT)["n"]
            source = _describe_source(asked(result), "test")
            seen[benchmark, ""] = [f"test, {benchmark}", *source, f"{n:,}"]
    return table(["for", "rows of", "known by", "rows"], list(seen.values()))


def _describe_source(step: StepSpec, role: str) -> list[str]:
    """Where rows come from, and what identifies them."""
    place: Place = step.locations[role]
    identity = step.inputs[role]
    assert not isinstance(identity, StepSpec)
    if place["parts"]:
        described = map(_describe_place, place["parts"], identity["parts"])
        return [" + ".join(texts) for texts in zip(*described, strict=True)]
    return _describe_place(place, identity)


def _describe_place(place: Place, identity: OutsideIdentity) -> list[str]:
    source = plain_name(place["source"])
    more = [f"{key} {code(str(place[key]))}" for key in ("name", "file") if place[key]]
    if "file" not in identity or identity.get("hub"):
        more += [f"split {code(place['split'])}"]
    more += filter(None, [Source.model_validate(place).describe_rows])
    name = code(source)
    if "hub" in identity:
        known = f"commit {code(identity['revision'])}"
        if HUB_ID.fullmatch(source):
            name = f"[{name}](https://huggingface.co/datasets/{source})"
    elif "builtin" in identity:
        known = f"built into bashrac, version {identity['version']}"
    elif "file" in identity:
        known = f"sha256 {code(identity['file'])}"
    else:
        known = f"sha256 of its files' digests {code(artifact.fingerprint(identity['files']))}"
    return [", ".join([name, *more]), known]


def _method(found: FinishedStage) -> str:
    """Two sentences; for a method that has none here, the first paragraph of its module."""
    name = method_name(found)
    if name in METHODS:
        return METHODS[name]
    return inline((method_module(name).__doc__ or name).split("\n\n")[0])


def _describe_base(found: FinishedStage) -> str:
    base = hub_base(found)
    if base is not None:
        return f"[{code(base)}](https://huggingface.co/{base})"
    return f"{code(plain_name(found.plan.recipe.model))} (a folder that is not on the hub)"
