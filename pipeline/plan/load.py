"""Reads a recipe strictly: variant, overrides, schema, and every problem at once, as sentences.

Nothing here imports torch, trl or datasets.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from eval.benchmarks.registry import BENCHMARKS, benchmark_of
from eval.benchmarks.types import Options
from pipeline.errors import InputError, Problem, RecipeError, suggest
from pipeline.plan.check import cross_check
from pipeline.recipe import shipped, sweep, trl_fields
from pipeline.recipe.chat_template import read_chat_template
from pipeline.recipe.overlays import KEY as VARIANTS
from pipeline.recipe.overlays import set_key, take_variant, variant_names
from pipeline.recipe.registry import METHODS, method_module, trainer_of
from pipeline.recipe.schema import SHORT, Recipe, StageOptions, SweepPoint
from pipeline.recipe.secrets import key_problems
from pipeline.recipe.strict_yaml import describe_yaml_error, read_yaml, read_yaml_file

_LARGEST = 2**63 - 1
# Their fields stand below `trainer`, and are often written beside it.
_TRAINERS = ["trl.SFTConfig", "trl.DPOConfig"]
# What pydantic says of a value of another shape.
_SHAPES = {
    "list_type": "must be a list",
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type"), "must be a mapping of keys"
    ),
}
# Control characters but tab and line ends, and half characters, which UTF-8 cannot hold.
_UNREADABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


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


def _read(source: str | Path) -> tuple[Path, dict[str, Any]]:
    path = shipped.find_recipe(str(source))
    raw = read_yaml_file(path)
    if not isinstance(raw, dict):
        raise InputError(
            f"{path}: a recipe is a mapping of keys; `bashrac copy demo FILE` writes one to edit"
        )
    return path, raw


def check_recipe(raw: dict[str, Any], overrides: Sequence[str], *, name: str) -> Recipe:
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
    checked = [(values, *_check_point(one)) for values, one in sweep.points_of(rest, swept)]
    wrong += sweep.join_problems(swept, [(values, found) for values, _, found in checked])
    points = [SweepPoint(values, recipe) for values, recipe, _ in checked if recipe is not None]
    if wrong:
        raise RecipeError(name, sorted(dict.fromkeys(wrong), key=lambda problem: problem.key))
    return points[0].recipe.swept(swept, points) if swept else points[0].recipe


def _check_point(raw: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """A recipe without a sweep, and its problems; None where it has no shape."""
    problems: list[Problem] = [*_not_plain(raw, ""), *key_problems(raw)]
    recipe = _validate(Recipe, raw, "", problems)
    if recipe is None:  # what is wrong with the keys that it has is to be said as well
        known = {key: value for key, value in raw.items() if key in _keys_at(Recipe, [])}
        recipe = _validate(Recipe, known, "", [])
    stages, repaired_stages = _validate_stages(raw.get("stages"), problems)
    benchmarks, repaired_benchmarks = _validate_benchmarks(raw.get("benchmarks"), problems)
    if recipe is not None:
        update: dict[str, Any] = {"stages": stages, "benchmarks": benchmarks}
        if recipe.chat_template is not None:
            update["chat_template"] = _validate_template(recipe.chat_template, problems)
        recipe = recipe.model_copy(update=update)
        written = [str(name) for name in raw["stages"]]
        found = cross_check(recipe, written)
        if repaired_stages or repaired_benchmarks:
            all_stages = {**stages, **repaired_stages}
            update = {
                "stages": {name: all_stages[name] for name in raw["stages"] if name in all_stages},
                "benchmarks": {**benchmarks, **repaired_benchmarks},
            }
            repaired = [f"stages.{name}." for name in repaired_stages]
            repaired += [f"benchmarks.{name}" for name in repaired_benchmarks]
            wrong = [problem.key for problem in problems]
            found = [
                problem
                for problem in cross_check(recipe.model_copy(update=update), written)
                if problem in found or _stands_alone(problem.key, raw, repaired, wrong)
            ]
        if len(benchmarks) < len(raw.get("benchmarks") or {}):  # what these say is not known
            found = [problem for problem in found if problem.key != "data.test"]
        problems += found
    return recipe, problems


def _stands_alone(key: str, raw: dict[str, Any], repaired: list[str], wrong: list[str]) -> bool:
    """Whether a problem of a stage or benchmark that has others is one whatever these are.

    So it is where its key stands in the file: a key that is missing may be the misspelt one.
    """
    if not any(key.startswith(prefix) for prefix in repaired):
        return key == "stages"  # too many rounds, over all of them
    if any(f"{key}.".startswith(f"{other}.") for other in wrong):
        return False
    node: Any = raw
    for part in key.split("."):
        if isinstance(node, dict) and part not in node:
            return False
        node = node[part] if isinstance(node, dict) else node
    return True


def _repair(schema: type[BaseModel], raw: Any) -> Any:
    """A stage or benchmark as it was most likely meant; None where that cannot be told.

    A misspelt key stands for the one it resembles; whatever else is wrong is left out.
    """
    from difflib import get_close_matches

    if not isinstance(raw, dict):
        return None
    known = _keys_at(schema, [])
    near = {key: get_close_matches(str(key), known, n=1) for key in raw if key not in known}
    respelt = {match[0]: raw[key] for key, match in near.items() if match}
    for given in ({**respelt, **{key: raw[key] for key in raw if key in known}}, raw):
        try:
            return schema.model_validate(given)
        except ValidationError as error:
            wrong = {item["loc"][0] for item in error.errors() if item["loc"]}
        with contextlib.suppress(ValidationError):
            return schema.model_validate({key: given[key] for key in given if key not in wrong})
    return None


def _apply_override(raw: dict[str, Any], override: str, recipe: str) -> str:
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


def _not_plain(node: Any, key: str) -> Iterator[Problem]:
    """Numbers and texts that YAML can write and nothing here can use."""
    if isinstance(node, (dict, list)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in items:
            if isinstance(name, str) and _UNREADABLE.search(name):
                yield Problem(f"{key}.{name}".strip("."), "holds a control character; take it out")
            yield from _not_plain(value, f"{key}.{name}".strip("."))
    elif isinstance(node, float) and not math.isfinite(node):
        yield Problem(key, f"{node} is not a finite number; write a large one, such as 1.0e+9")
    elif isinstance(node, int) and abs(node) > _LARGEST:
        yield Problem(key, f"{node} is too large; the largest whole number is {_LARGEST}")
    elif isinstance(node, str) and (found := _UNREADABLE.search(node)):
        yield Problem(key, f"{node!r} holds the control character {found[0]!r}; take it out")


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
                sentence = _misplaced(schema, item, list(path), raw, prefix)
                sentence = sentence or _sentence(schema, item, list(path))
                problems.append(Problem(key or "recipe", sentence))
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


def _misplaced(
    schema: type[BaseModel], item: Any, path: list[str], raw: Any, prefix: str
) -> str | None:
    """Where an option of trl or peft belongs that stands beside `trainer` or `lora`, else None."""
    *above, name = path or [""]
    known = _keys_at(schema, above)
    if item["type"] != "extra_forbidden" or not {"trainer", "lora"} <= set(known):
        return None
    trainers = [trainer_of(raw["method"])] if prefix else _TRAINERS  # a stage has its method's
    for block, classes in (("trainer", trainers), ("lora", ["peft.LoraConfig"])):
        for one in classes:
            if one is not None and name in trl_fields.fields_of(one):
                place = ".".join(filter(None, [prefix, *above, block, name]))
                return trl_fields.set_here(one, name) or f"belongs below {block}: {place}"
    return None


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
        hint = trl_fields.number_hint(value, whole=kind == "int_type")
        if hint:
            return hint
    shown = "" if isinstance(value, (dict, list)) else f"{_as_yaml(value)}: "
    if kind in _SHAPES:
        one_value = kind == "list_type" and isinstance(value, (str, int, float))
        example = f", such as [{_as_yaml(value)}]" if one_value else ""
        return f"{shown}{_SHAPES[kind]}{example}"
    if kind == "too_short":
        least = item["ctx"]["min_length"]
        return f"{shown}must hold at least {least} {'value' if least == 1 else 'values'}"
    if kind == "literal_error" and isinstance(value, str):
        choices = re.findall("'([^']*)'", item["ctx"]["expected"])
        hint = suggest(SHORT.get(value.lower(), value), choices)
    else:
        hint = ""
    message = item["msg"].replace("Input should be", "should be").replace("'", "")
    return f"{shown}{message}{hint}"


def _as_yaml(value: Any) -> str:
    """A single value as it stands in a recipe."""
    is_word = value is None or isinstance(value, bool)
    return {None: "null", True: "true", False: "false"}[value] if is_word else repr(value)


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


def _validate_template(given: str, problems: list[Problem]) -> str:
    try:
        return read_chat_template(given)
    except InputError as error:
        problems.append(Problem("chat_template", str(error)))
        return given


def _validate_benchmarks(
    raw: Any, problems: list[Problem]
) -> tuple[dict[str, Options], dict[str, Options]]:
    """The benchmarks that are right, and the others repaired."""
    benchmarks: dict[str, Options] = {}
    repaired: dict[str, Options] = {}
    for name, body in (raw if isinstance(raw, dict) else {}).items():
        key = f"benchmarks.{name}"
        if name not in BENCHMARKS:
            hint = suggest(str(name), list(BENCHMARKS))
            known = ", ".join(BENCHMARKS)
            problems.append(Problem(key, f"no benchmark {name!r}{hint}; there are {known}"))
            continue
        schema = benchmark_of(name).options
        if (found := _validate(schema, body, key, problems)) is not None:
            benchmarks[name] = found
        elif (found := _repair(schema, body)) is not None:
            repaired[name] = found
    return benchmarks, repaired


def _validate_stages(
    raw: Any, problems: list[Problem]
) -> tuple[dict[str, StageOptions], dict[str, StageOptions]]:
    """The stages that are right, and the others repaired."""
    stages: dict[str, StageOptions] = {}
    repaired: dict[str, StageOptions] = {}
    if not isinstance(raw, dict):
        return stages, repaired  # the schema has said so
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
        schema = method_module(method).Options
        if (stage := _validate(schema, body, key, problems)) is not None:
            stages[name] = stage
        elif (stage := _repair(schema, body)) is not None:
            repaired[name] = stage
    return stages, repaired
