"""Reads a recipe strictly: overrides, schema, and every problem at once, as sentences.

Nothing here imports torch, trl or datasets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from eval.benchmarks import BENCHMARKS, Options
from pipeline import options, shipped
from pipeline.check import cross_check
from pipeline.errors import InputError, Problem, RecipeError, suggest
from pipeline.recipe import Recipe, StageOptions, method_module, written_out
from pipeline.stages import METHODS


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        source: a path, or the name of a shipped recipe.
        overrides: `key.path=value` texts, values read as YAML.

    Raises:
        InputError: when the file cannot be read; RecipeError with all problems at once.
    """
    path = shipped.find_recipe(str(source))
    return check_recipe(_read_yaml(path), overrides, name=str(path))


def check_recipe(raw: dict[str, Any], overrides: Sequence[str], *, name: str) -> Recipe:
    """Override and check a recipe that has been read; `name` is what its problems are listed under.

    Raises:
        InputError: for an override that is none; RecipeError with all problems at once.
    """
    for override in overrides:
        _apply_override(raw, override)
    problems: list[Problem] = list(_not_finite(raw, ""))
    recipe = _validate(Recipe, raw, "", problems)
    stages = _validate_stages(raw.get("stages"), problems)
    benchmarks = _validate_benchmarks(raw.get("benchmarks"), problems)
    if recipe is not None:
        recipe = recipe.model_copy(update={"stages": stages, "benchmarks": benchmarks})
        found = cross_check(recipe, [str(name) for name in raw["stages"]])
        if len(benchmarks) < len(raw.get("benchmarks") or {}):  # what these say is not known
            found = [problem for problem in found if problem.key != "data.test"]
        problems += found
    if problems or recipe is None:
        raise RecipeError(name, sorted(dict.fromkeys(problems), key=lambda problem: problem.key))
    return recipe


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML would silently drop."""


def _mapping_without_duplicates(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)  # type: ignore[no-untyped-call]
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a key must be plain text")
        if key in seen:
            raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: '{key}' is given twice")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeyLoader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply to be a recipe") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys; `bashrac copy demo FILE` is one")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise InputError(f"--set {override}: write it as key=value, e.g. --set data.train.limit=64")
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--set {override}: the value is not valid YAML: {error}") from None
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


def _not_finite(node: Any, key: str) -> Iterator[Problem]:
    if isinstance(node, (dict, list)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in items:
            yield from _not_finite(value, f"{key}.{name}".strip("."))
    elif isinstance(node, float) and not math.isfinite(node):
        yield Problem(key, f"{node} is not a finite number; write a large one, such as 1.0e+9")


def _validate(schema: type[BaseModel], raw: Any, prefix: str, problems: list[Problem]) -> Any:
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        items = error.errors(include_url=False)
        paths = [_path_in(raw, item) for item in items]
        seen: set[tuple[str, ...]] = set()
        for path, item in zip(paths, items, strict=True):
            # Of the alternatives of a union, the one that the value resembles speaks.
            deeper = any(len(other) > len(path) and other[: len(path)] == path for other in paths)
            if not deeper and path not in seen:
                seen.add(path)
                key = ".".join([prefix, *path] if prefix else path)
                problems.append(Problem(key or "recipe", _sentence(schema, item, list(path))))
        return None


def _path_in(raw: Any, item: Any) -> tuple[str, ...]:
    """Where an error stands in the file: pydantic's location without the names of union members."""
    path = []
    for part in item["loc"]:
        in_list = isinstance(raw, list) and isinstance(part, int)
        if in_list or (isinstance(raw, dict) and part in raw):
            raw = raw[part]
        elif item["type"] != "missing" or part != item["loc"][-1]:
            continue
        path.append(str(part))
    return tuple(path)


def _sentence(schema: type[BaseModel], item: Any, path: list[str]) -> str:
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = _keys_at(schema, path[:-1])
        hint = suggest(path[-1], known) or f"; keys: {', '.join(known)}"
        return f"not a key bashrac knows{hint}"
    if kind == "missing":
        return "is missing"
    if kind == "string_pattern_mismatch":
        return f"{value!r} may hold letters, digits, '.', '_', '-', starting with a letter or digit"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        hint = options.number_hint(value)
        if hint:
            return hint
    message = item["msg"].replace("Input should be", "should be").replace("'", "")
    return f"{value!r}: {message}" if not isinstance(value, (dict, list)) else message


def _keys_at(schema: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = schema.model_fields.get(part)
        members = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = [getattr(member, "__origin__", member) for member in members]  # of an Annotated
        nested = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not nested:
            return []
        schema = nested[0]
    return [field.alias or name for name, field in schema.model_fields.items()]


def _validate_benchmarks(raw: Any, problems: list[Problem]) -> dict[str, Options]:
    benchmarks: dict[str, Options] = {}
    for name, body in (raw if isinstance(raw, dict) else {}).items():
        key = f"benchmarks.{name}"
        if name not in BENCHMARKS:
            hint = suggest(str(name), list(BENCHMARKS))
            known = ", ".join(BENCHMARKS)
            problems.append(Problem(key, f"no benchmark {name!r}{hint}; there are {known}"))
            continue
        found = _validate(BENCHMARKS[name].options, body, key, problems)
        if found is not None:
            benchmarks[name] = found
    return benchmarks


def _validate_stages(raw: Any, problems: list[Problem]) -> dict[str, StageOptions]:
    stages: dict[str, StageOptions] = {}
    if not isinstance(raw, dict):
        return stages  # the schema has said so
    for name, body in raw.items():
        key = f"stages.{name}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            problems.append(Problem(key, "a stage's name is letters, digits, '-' and '_'"))
            continue
        if not isinstance(body, dict) or "method" not in body:
            problems.append(Problem(key, f"needs a method: {', '.join(METHODS)}"))
            continue
        method = body["method"]
        if not isinstance(method, str) or method not in METHODS:
            hint = suggest(str(method), list(METHODS))
            known = ", ".join(METHODS)
            problems.append(
                Problem(f"{key}.method", f"no method {method!r}{hint}; methods: {known}")
            )
            continue
        stage = _validate(method_module(method).Options, body, key, problems)
        if stage is not None:
            stages[name] = stage
    return stages
