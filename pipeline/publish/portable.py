"""A finished stage's recipe as it can be handed on: what made it, and nothing of this machine.

It holds the stage, those it starts from, one seed, and the commits that hub names stood for. Local
files are named without their folders. `bashrac run` on it makes steps of the same fingerprints,
where files of the same content lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.publish.stage import FinishedStage
from pipeline.recipe import shipped
from pipeline.recipe.schema import Judge, Source
from pipeline.steps.spec import StepSpec

# Top-level keys that say what a number is compared with, or hold what is not of this stage.
_LEFT_OUT = ("baseline", "published", "variants")


def chain(found: FinishedStage) -> list[str]:
    """The stage and those it starts from, the first first."""
    names, name = [], found.name
    while name is not None:
        names.insert(0, name)
        name = found.plan.recipe.stages[name].start
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
    if commit := found.revision:
        raw["revision"] = commit
    if (
        "launch" in raw
        and not (shipped.folder("accelerate_configs") / f"{raw['launch']}.yaml").is_file()
    ):
        del raw["launch"]  # a file of one's own, which decides no result
    judge: Any = raw.get("judge")
    if judge is not None:
        if recipe.judge is not None and recipe.judge.model is not None:
            judge["model"] = plain_name(recipe.judge.model)
        if judge.get("base_url") != Judge.model_fields["base_url"].default:
            judge.pop("base_url", None)  # perhaps a machine of one's own
    commits = _commits(found)
    for role, place in (raw.get("data") or {}).items():
        parts = place.get("parts") or [] if isinstance(place, dict) else []
        for one in parts or [place]:
            if isinstance(one, dict):
                _name_source(one, commits.get((role, one["source"])))
        if parts:
            place["source"] = " + ".join(part["source"] for part in parts)
    gap = (raw.get("benchmarks") or {}).get("gap", {})
    if gap.get("fixed") not in (None, *raw["stages"]):
        gap["fixed"] = None  # a stage that this recipe does not hold
    for options in (raw.get("benchmarks") or {}).values():
        for key, value in options.items():
            if isinstance(value, dict) and "source" in value:
                role = "test" if key == "data" else key
                _name_source(value, commits.get((role, value["source"])))
            elif key == "template":
                options[key] = plain_name(str(value))
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=100)


def plain_name(text: str) -> str:
    """What stands for a file or folder of this machine: its own name. Other texts stay."""
    if is_local(text):
        return Path(text).expanduser().resolve().name or "folder"
    return text


def is_local(text: str) -> bool:
    """Whether a text that may be a hub id names a file or folder of this machine."""
    return text.startswith(("./", "../", "/", "~")) or shipped.user_path(text).exists()


def local_names(found: FinishedStage) -> dict[str, str]:
    """How the recipe writes files and folders of this machine -> their names alone."""
    places = [place for step in _steps(found) for place in step.locations.values()]
    parts = [part for place in places if isinstance(place, dict) for part in place["parts"] or ()]
    texts = [place["source"] if isinstance(place, dict) else place for place in (*parts, *places)]
    options = [vars(given) for given in found.plan.recipe.benchmarks.values()]
    texts += [given["template"] for given in options if "template" in given]
    if (judge := found.plan.recipe.judge) is not None and judge.model is not None:
        texts.append(judge.model)
    found_names = {text: plain_name(text) for text in texts if is_local(text)}
    return dict(sorted(found_names.items(), key=lambda pair: -len(pair[0])))


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


def _name_source(place: dict[str, Any], commit: str | None) -> None:
    source = Source(**place)
    if source.path is not None:
        place["source"] = plain_name(place["source"])
    elif commit is not None:
        place["revision"] = commit
