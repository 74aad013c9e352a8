"""A finished stage's recipe for publication: what made it, and nothing about this machine.

It holds the stage, those it starts from, one seed, and the commits that hub ids stood for. Local
files are named without their folders. `bashrac run` on it makes steps with the same fingerprints,
given files with the same content beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from pipeline.publish.stage import FinishedStage
from pipeline.recipe import shipped
from pipeline.recipe.schema import Judge, Source
from pipeline.recipe.strict_yaml import Raw
from pipeline.steps.spec import StepSpec

# Top-level keys about comparisons and other variants.
_LEFT_OUT = ("baseline", "published", "variants")


def chain(found: FinishedStage) -> list[str]:
    """The stages that lead to this one, and itself, in order."""
    names, stages = [found.name], found.plan.recipe.stages
    while start := stages[names[0]].start:
        names.insert(0, start)
    return names


def made_by(found: FinishedStage) -> Iterator[tuple[str, StepSpec]]:
    """The steps of the chain that train or write rows, each with its stage."""
    for name in chain(found):
        for step in found.plan.stage_steps[name, found.seed]:
            yield name, step


def data_of(found: FinishedStage) -> list[tuple[StepSpec, str]]:
    """The steps of the chain that read data, each with the role of what it reads.

    Those that train come first: they have counted the rows.
    """
    pairs = [
        (step, role) for _, step in made_by(found) for role in step.locations if role != "base"
    ]
    return sorted(pairs, key=lambda pair: pair[0].kind != "train")


def portable_recipe(found: FinishedStage) -> str:
    """Return the recipe as YAML."""
    recipe = found.plan.recipe
    raw = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw = {key: raw[key] for key in raw if key not in _LEFT_OUT and raw[key] != {}}
    raw["seeds"] = [found.seed]
    raw["stages"] = {name: raw["stages"][name] for name in chain(found)}
    raw["model"] = plain_name(recipe.model)
    if found.revision:
        raw["revision"] = found.revision
    launch = shipped.folder("accelerate_configs") / f"{raw.get('launch')}.yaml"
    if not launch.is_file():
        raw.pop("launch", None)  # the user's own file, which decides no result
    judge: Raw = raw.get("judge") or {}
    if judge.get("model"):
        judge["model"] = plain_name(judge["model"])
    if judge.get("base_url") != Judge.model_fields["base_url"].default:
        judge.pop("base_url", None)  # its address may be a private machine's
    commits = _commits(found)
    for role, place in (raw.get("data") or {}).items():
        parts = place.get("parts") or [] if isinstance(place, dict) else []
        for one in parts or [place]:
            if isinstance(one, dict):
                _name_source(one, commits.get((role, one["source"])))
        if parts:
            place["source"] = " + ".join(part["source"] for part in parts)
    benchmarks: Raw = raw.get("benchmarks") or {}
    for options in benchmarks.values():
        if options.get("fixed") not in (None, *raw["stages"]):
            options["fixed"] = None  # a stage that this recipe does not hold
    for options in benchmarks.values():
        for key, value in options.items():
            if isinstance(value, dict) and "source" in value:
                role = "test" if key == "data" else key
                _name_source(value, commits.get((role, value["source"])))
            elif key == "template":
                options[key] = plain_name(str(value))
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=100)


def plain_name(text: str) -> str:
    """Return a file or folder of this machine without its parents; other texts as they are."""
    if is_local(text):
        return Path(text).expanduser().resolve().name or "folder"
    return text


def is_local(text: str) -> bool:
    """Whether a text that may be a hub id names a file or folder of this machine."""
    return text.startswith(("./", "../", "/", "~")) or shipped.user_path(text).exists()


def local_names(found: FinishedStage) -> dict[str, str]:
    """Files and folders of this machine, as the recipe writes them -> names; longest first."""
    recipe = found.plan.recipe
    places = [place for step in _steps(found) for place in step.locations.values()]
    parts = [part for place in places if isinstance(place, dict) for part in place["parts"] or ()]
    texts = [place["source"] if isinstance(place, dict) else place for place in (*parts, *places)]
    options = [vars(given) for given in recipe.benchmarks.values()]
    texts += [given["template"] for given in options if "template" in given]
    if recipe.judge is not None and recipe.judge.model is not None:
        texts.append(recipe.judge.model)
    local = sorted({text for text in texts if is_local(text)}, key=len, reverse=True)
    return {text: plain_name(text) for text in local}


def _steps(found: FinishedStage) -> list[StepSpec]:
    """The steps of the chain, and those of the stage's evaluation."""
    steps = [step for _, step in made_by(found)]
    for name in found.plan.recipe.evaluate:
        result = found.plan.results[found.name, name, found.seed]
        steps += [result, *(one for one in result.inputs.values() if isinstance(one, StepSpec))]
    return steps


def _commits(found: FinishedStage) -> dict[tuple[str, str], str]:
    """Role and hub id -> the commit that was read."""
    places = [item for step in _steps(found) for item in step.locations.items()]
    return {
        (role, one["source"]): one["revision"]
        for role, place in places
        if isinstance(place, dict)
        for one in (place, *(place["parts"] or ()))
        if one["revision"]
    }


def _name_source(place: Raw, commit: str | None) -> None:
    source = Source(**place)
    if source.path is not None:
        place["source"] = plain_name(place["source"])
    elif commit is not None:
        place["revision"] = commit
