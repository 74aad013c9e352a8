"""Reads a recipe: its file, a variant of it, overrides and sweep.

Nothing here imports torch, trl or datasets.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline.errors import InputError, RecipeError, suggest
from pipeline.plan.validate import validate
from pipeline.recipe import shipped, sweep
from pipeline.recipe.overlays import KEY as VARIANTS
from pipeline.recipe.overlays import set_key, take_variant, variant_names
from pipeline.recipe.schema import Recipe, SweepPoint
from pipeline.recipe.strict_yaml import Raw, describe_yaml_error, read_yaml, read_yaml_file


def load_recipe(
    source: str | Path, overrides: Sequence[str] = (), variant: str | None = None
) -> Recipe:
    """Read a recipe, lay a variant over it, override and check it.

    Args:
        source: a path, or the name of a shipped recipe.
        overrides: `key.path=value` texts, values read as YAML; they go over the variant.
        variant: one of the recipe's variants, by default the first.

    Raises:
        InputError: when the file cannot be read, or has no such variant; RecipeError with all
            problems at once.
    """
    path, raw = _read(source)
    taken, chosen = take_variant(raw, variant, name=str(path))
    name = str(path) if chosen is None else f"{path} (variant {chosen})"
    return check_recipe(taken, overrides, name=name)


def command_for(
    verb: str, named: str, overrides: Sequence[str], variant: str | None, runs: Path | None = None
) -> str:
    """A `bashrac` command about a recipe that was read with these terms, to be typed in a shell."""
    words = ["bashrac", verb, named, *(["--variant", variant] if variant else [])]
    for override in overrides:
        words += ["--set", override]
    if runs not in (None, Path("runs")):
        words += ["--runs", str(runs)]
    return shlex.join(words)


def variants_of(source: str | Path) -> list[str]:
    """The variants of a recipe's file, the default first; none where it has none.

    Raises:
        InputError: when the file cannot be read; RecipeError where these are no mappings.
    """
    path, raw = _read(source)
    return variant_names(raw, name=str(path))


def _read(source: str | Path) -> tuple[Path, Raw]:
    path = shipped.find_recipe(str(source))
    raw = read_yaml_file(path)
    if not isinstance(raw, dict):
        raise InputError(
            f"{path}: a recipe is a mapping of keys; `bashrac copy demo FILE` writes one to edit"
        )
    return path, raw


def check_recipe(raw: Raw, overrides: Sequence[str], *, name: str) -> Recipe:
    """Override and check a recipe that has been read; `name` is what its problems are listed under.

    Raises:
        InputError: for an override that is none; RecipeError with all problems at once.
    """
    keys = [_apply_override(raw, override, name) for override in overrides]
    rest, swept, wrong = sweep.take_sweep(raw)
    for key in keys:
        if over := next((other for other in swept if f"{key}.".startswith(f"{other}.")), None):
            raise InputError(
                f"--set {key}: the recipe's sweep sets it; "
                f"--set {sweep.KEY}.{over}=null takes it out of the sweep"
            )
    checked = [(values, *validate(one)) for values, one in sweep.points_of(rest, swept)]
    wrong += sweep.join_problems(swept, [(values, found) for values, _, found in checked])
    points = [SweepPoint(values, recipe) for values, recipe, _ in checked if recipe is not None]
    if wrong:
        raise RecipeError(name, sorted(dict.fromkeys(wrong), key=lambda problem: problem.key))
    return points[0].recipe.swept(swept, points) if swept else points[0].recipe


def _apply_override(raw: Raw, override: str, recipe: str) -> str:
    """Set a key; returns it."""
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts) or len(parts) > sweep.MOST_PARTS:
        raise InputError(f"--set {override}: write it as key=value, e.g. --set data.train.limit=64")
    if parts[0] == VARIANTS:
        raise InputError(
            f"--set {key}: --set is applied after the variant, so set the recipe's own key"
        )
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"--set {key}: the value is not valid YAML: {describe_yaml_error(error)}"
        ) from None
    if parts[0] == sweep.KEY and len(parts) > 1:  # a swept key is one key, dots and all
        parts = [sweep.KEY, ".".join(parts[1:])]
        swept = raw.get(sweep.KEY) or {}
        if value is None and isinstance(swept, dict) and parts[1] not in swept:
            known = f"{suggest(parts[1], list(swept))}; its keys: {', '.join(swept) or 'none'}"
            raise InputError(f"--set {key}: no such key in the sweep of {recipe}{known}")
    set_key(raw, parts, value)
    return ".".join(parts)
