"""Validates a recipe that has been read: every problem at once, as sentences."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from eval.benchmarks.registry import BENCHMARKS, benchmark_of
from pipeline.errors import InputError, Problem, suggest
from pipeline.plan.check import cross_check
from pipeline.recipe import trl_fields
from pipeline.recipe.chat_template import read_chat_template
from pipeline.recipe.registry import METHODS, method_module, trainer_of
from pipeline.recipe.schema import SHORT, Recipe
from pipeline.recipe.secrets import key_problems
from pipeline.recipe.strict_yaml import Raw

_LARGEST = 2**63 - 1
# Their fields stand below `trainer`, and are often written beside it.
_TRAINERS = ["trl.SFTConfig", "trl.DPOConfig"]
# What pydantic says of a value of another shape.
_SHAPES = {
    "list_type": "must be a list",
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type"), "must be a mapping of keys"
    ),
    **dict.fromkeys(("string_type", "string_unicode"), "must be text: write it in quotes"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
}
# Control characters but tab and line ends, and half characters, which UTF-8 cannot hold.
_UNREADABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_Schema = type[BaseModel]


def validate(raw: Raw) -> tuple[Recipe | None, list[Problem]]:
    """Return a recipe without a sweep, None where it has no shape, and its problems."""
    problems: list[Problem] = [*_not_plain(raw, ""), *key_problems(raw)]
    recipe = _validate(Recipe, raw, "", problems)
    mended = [] if recipe is not None else [""]  # prefixes of the keys of what was mended
    recipe = recipe or _mend(Recipe, raw)
    stages, mended_stages = _validate_each("stages", raw, _stage_schema, problems)
    benchmarks, mended_benchmarks = _validate_each("benchmarks", raw, _benchmark_schema, problems)
    if recipe is None:
        return None, problems
    update: dict[str, Any] = {"stages": stages, "benchmarks": benchmarks}
    if recipe.chat_template is not None:
        update["chat_template"] = _validate_template(recipe.chat_template, problems)
    recipe = recipe.model_copy(update=update)
    names = [str(name) for name in raw["stages"]]
    found = [] if mended else cross_check(recipe, names)
    mended += [f"stages.{name}." for name in mended_stages]
    mended += [f"benchmarks.{name}" for name in mended_benchmarks]
    if mended:
        every = {**stages, **mended_stages}
        update = {
            "stages": {name: every[name] for name in raw["stages"] if name in every},
            "benchmarks": {**benchmarks, **mended_benchmarks},
        }
        wrong = [problem.key for problem in problems]
        found = [
            problem
            for problem in cross_check(recipe.model_copy(update=update), names)
            if problem in found or _stands_alone(problem, raw, mended, wrong)
        ]
    given = raw.get("benchmarks") or {}
    if not isinstance(given, dict) or len(benchmarks) < len(given):  # what these say is not known
        found = [problem for problem in found if problem.key != "data.test"]
    return recipe, problems + found


def _stands_alone(problem: Problem, raw: Raw, mended: list[str], wrong: list[str]) -> bool:
    """Whether a problem found beside others, in what was mended, is one whatever these are.

    So it is where its key stands in the file (one that is missing may be the misspelt one), and
    neither it, nor what lies below or is said of it, is about a key that is wrong itself.
    """
    key = problem.key
    if key == "stages":
        return True  # too many rounds, over all of them
    if not any(key.startswith(prefix) for prefix in mended):
        return False
    for other in wrong:
        below_a_stage = key.startswith("stages.") and other.startswith(f"{key}.")
        if f"{key}.".startswith(f"{other}.") or below_a_stage:
            return False
    if any("." not in other and re.search(rf"\b{other}\b", problem.message) for other in wrong):
        return False
    node: Any = raw
    for part in key.split("."):
        if isinstance(node, dict) and part not in node:
            return False
        node = node[part] if isinstance(node, dict) else node
    return True


def _mend(schema: _Schema, raw: Any) -> Any:
    """A recipe, stage or benchmark as it was most likely meant; None where that cannot be told.

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


def _validate_each(
    key: str,
    raw: Raw,
    schema_of: Callable[[Any, Any], _Schema | str],
    problems: list[Problem],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stages or benchmarks that are right, and the others as far as they can be mended."""
    right: dict[str, Any] = {}
    mended: dict[str, Any] = {}
    given = raw.get(key)
    for name, body in given.items() if isinstance(given, dict) else ():
        schema = schema_of(name, body)
        if isinstance(schema, str):
            place = f"{key}.{name}.method" if schema.startswith("no method") else f"{key}.{name}"
            problems.append(Problem(place, schema))
        elif (found := _validate(schema, body, f"{key}.{name}", problems)) is not None:
            right[name] = found
        elif (found := _mend(schema, body)) is not None:
            mended[name] = found
    return right, mended


def _stage_schema(name: Any, body: Any) -> _Schema | str:
    """The options of a stage's method, or why there are none."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        return "a stage's name is letters, digits, '-' and '_'"
    known = ", ".join(METHODS)
    if not isinstance(body, dict) or "method" not in body:
        return f"needs a method: {known}"
    method = body["method"]
    if not isinstance(method, str) or method not in METHODS:
        return f"no method {method!r}{suggest(str(method), list(METHODS))}; methods: {known}"
    return method_module(method).Options


def _benchmark_schema(name: Any, body: Any) -> _Schema | str:
    """The options of a benchmark, or why there are none."""
    del body
    if name in BENCHMARKS:
        return benchmark_of(name).options
    near = suggest(str(name), list(BENCHMARKS))
    return f"no benchmark {name!r}{near}; there are {', '.join(BENCHMARKS)}"


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


def _validate(schema: _Schema, raw: Any, prefix: str, problems: list[Problem]) -> Any:
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


def _misplaced(schema: _Schema, item: Any, path: list[str], raw: Any, prefix: str) -> str | None:
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


def _sentence(schema: _Schema, item: Any, path: list[str]) -> str:
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
        hint = f", or a Python file that holds one{hint}" if path == ["task"] else hint
    else:
        hint = ""
    message = item["msg"].replace("Input should be", "should be").replace("'", "")
    return f"{shown}{message}{hint}"


def _as_yaml(value: Any) -> str:
    """A single value as it stands in a recipe."""
    is_word = value is None or isinstance(value, bool)
    return {None: "null", True: "true", False: "false"}[value] if is_word else repr(value)


def _keys_at(schema: _Schema, path: list[str]) -> list[str]:
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
