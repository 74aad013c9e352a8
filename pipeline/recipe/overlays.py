"""Variants of a recipe: named overlays in its file, of which one is laid over the rest.

`variants: {NAME: overlay}` at the top of a recipe. An overlay is merged key by key where both sides
are mappings; everything else in it, lists and null too, replaces what it lies over. The result is
named `<name>-<variant>`. Without a choice the first variant is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import InputError, Problem, RecipeError, suggest
from pipeline.recipe.schema import written_out
from pipeline.recipe.strict_yaml import Raw

KEY = "variants"


def variant_names(raw: Raw, *, name: str) -> list[str]:
    """The variants of a recipe that has been read, the default first; none where it has none.

    Raises:
        RecipeError: where `variants` is not what it should be; `name` is the recipe's.
    """
    variants = raw.get(KEY, {})
    if problems := list(_problems(variants) if KEY in raw else ()):
        raise RecipeError(name, problems)
    return list(variants)


def take_variant(raw: Raw, variant: str | None, *, name: str) -> tuple[Raw, str | None]:
    """A recipe with one of its variants laid over it, in mappings and lists of its own; and which.

    Args:
        raw: the recipe as it was read.
        variant: one of its variants, or None for the first, if there are any.
        name: the recipe's, for errors.

    Raises:
        InputError: for a variant that it does not have; RecipeError as `variant_names`.
    """
    names = variant_names(raw, name=name)
    if variant is not None and not names:
        raise InputError(f"{name} has no variants; leave out --variant {variant}")
    if variant is not None and variant not in names:
        hint = suggest(variant, names)
        raise InputError(f"{name} has no variant {variant!r}{hint}; variants: {', '.join(names)}")
    rest = {key: value for key, value in raw.items() if key != KEY}
    chosen = variant or next(iter(names), None)
    if chosen is None:
        return merged(rest, {}), None
    taken = merged(rest, raw[KEY][chosen])
    if isinstance(taken.get("name"), str):
        taken["name"] = f"{taken['name']}-{chosen}"
    return taken, chosen


def merged(below: Raw, above: Raw, top: str | None = None) -> Raw:
    """Two mappings as one, sharing nothing with either: what YAML's aliases share comes apart.

    `top` is the key at the top of the recipe under which they stand, if they are not the whole.
    """
    result = {key: _copy(value) for key, value in below.items()}
    for key, value in above.items():
        held = result.get(key)
        if isinstance(value, dict) and isinstance(held, str):
            held = written_out(top or key, held)  # a source or a judge in plain text
        if isinstance(value, dict) and isinstance(held, dict):
            result[key] = merged(held, value, top or key)
        else:
            result[key] = _copy(value)
    return result


def set_key(raw: Raw, parts: Sequence[str], value: Any) -> None:
    """Set a key of a recipe by its parts; mappings that are missing on the way are made."""
    node: Any = raw
    for part in parts[:-1]:
        child = node.get(part)
        if isinstance(child, str):
            child = written_out(parts[0], child)
        if not isinstance(child, dict):
            child = {}
        node[part] = child
        node = child
    node[parts[-1]] = value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _problems(variants: Any) -> Iterator[Problem]:
    if not isinstance(variants, dict) or not variants:
        yield Problem(KEY, "is a mapping of names to keys of the recipe: {lora: {lora: {r: 16}}}")
        return
    for name, overlay in variants.items():
        key = f"{KEY}.{name}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            yield Problem(key, "a variant's name is letters, digits, '.', '_' and '-'")
        elif not isinstance(overlay, dict):
            yield Problem(key, "is a mapping of the recipe's keys that differ; {} for none")
        for own in ("name", KEY):
            if isinstance(overlay, dict) and own in overlay:
                yield Problem(f"{key}.{own}", "cannot differ between variants; take it out")
