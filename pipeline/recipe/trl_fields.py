"""Names and types of the options that a recipe passes through to trl and peft.

The installed libraries are the authority: their dataclasses are read from the source files, without
importing them (trl alone takes seconds) and without constructing them (`trl.SFTConfig()` raises on
a machine without a GPU). `tests/recipe/test_trl_fields.py` compares the result with
`dataclasses.fields`.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, suggest
from pipeline.extras import missing
from pipeline.recipe.trl_rules import (
    BASE_CHANGING,
    GONE,
    LORA_OWNED,
    OWNED,
    RANGES,
    RENAMED,
    TRACKERS,
)

# Each options class with the classes it inherits fields from, nearest first.
SOURCES = {
    "trl.SFTConfig": (
        ("trl", "trainer/sft_config.py", "SFTConfig"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("transformers", "training_args.py", "TrainingArguments"),
    ),
    "trl.DPOConfig": (
        ("trl", "trainer/dpo_config.py", "DPOConfig"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("transformers", "training_args.py", "TrainingArguments"),
    ),
    "peft.LoraConfig": (
        ("peft", "tuners/lora/config.py", "LoraConfig"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "config.py", "PeftConfigMixin"),
    ),
}
_MOST_CHOICES = 12  # that a message lists
# Fields whose values are the members of an enum, whatever text their annotation lets through.
_ENUMS = {
    "optim": ("transformers", "training_args.py", "OptimizerNames"),
    "lr_scheduler_type": ("transformers", "trainer_utils.py", "SchedulerType"),
    "eval_strategy": ("transformers", "trainer_utils.py", "IntervalStrategy"),
}


def fields_of(options_class: str) -> dict[str, ast.expr | None]:
    """Return field name -> annotation (as a syntax tree) of an options class in `SOURCES`.

    Raises:
        InputError: when the library is not installed or its source no longer has the class.
    """
    return read_fields(SOURCES[options_class])


@cache
def read_fields(classes: tuple[tuple[str, str, str], ...]) -> dict[str, ast.expr | None]:
    """The same of a class and those it inherits from, each as package, file and name."""
    fields: dict[str, ast.expr | None] = {}
    for package, file, class_name in classes:
        for node in _class_body(package, file, class_name):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                fields.setdefault(node.target.id, node.annotation)
    return {name: annotation for name, annotation in fields.items() if not name.startswith("_")}


@cache
def _choices(options_class: str) -> dict[str, list[str]]:
    """Field name -> the values it may have, where the library lists them beside the field."""
    found: dict[str, list[str]] = {}
    for package, file, class_name in SOURCES[options_class]:
        for node in _class_body(package, file, class_name):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.Dict):
                    for key, listed in zip(part.keys, part.values, strict=True):
                        is_list = isinstance(listed, ast.List)
                        if is_list and isinstance(key, ast.Constant) and key.value == "choices":
                            found.setdefault(node.target.id, ast.literal_eval(listed))
    return found


@cache
def _members(package: str, file: str, class_name: str) -> list[str]:
    """The values of an enum of texts."""
    values = [
        node.value
        for node in _class_body(package, file, class_name)
        if isinstance(node, ast.Assign)
    ]
    texts = [one.value for one in values if isinstance(one, ast.Constant)]
    return [text for text in texts if isinstance(text, str)]


@cache
def _class_body(package: str, file: str, class_name: str) -> list[ast.stmt]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"the package {package} is not installed; pip install {package}")
    path = Path(spec.origin).parent / file
    if path.exists():
        for node in _parsed(path).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                return node.body
    raise InputError(
        f"{path} does not define {class_name}: this {package} differs from the versions bashrac "
        "knows; install with constraints.txt"
    )


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def class_label(options_class: str) -> str:
    """Return e.g. 'trl.SFTConfig 1.16.0'."""
    package = options_class.split(".")[0]
    try:
        return f"{options_class} {version(package)}"
    except PackageNotFoundError:
        return options_class


def set_here(options_class: str, name: str) -> str | None:
    """Return where a user says what an option says that bashrac sets itself, None for others."""
    owned = OWNED if options_class.startswith("trl.") else LORA_OWNED
    return f"is set by bashrac: {owned[name]}" if name in owned else None


def problem_with(options_class: str, name: str, value: Any) -> str | None:
    """Return what is wrong with one option as a sentence, or None when it is fine."""
    fields = fields_of(options_class)
    if words := set_here(options_class, name):
        return words
    if name == "report_to":
        return _problem_with_trackers(value if isinstance(value, list) else [value])
    if name == "init_lora_weights" and str(value).startswith(BASE_CHANGING):
        return f"{value} changes the base or looks at data first, and a base stays as it is here"
    if name == "init_lora_weights" and value is False:
        return "false starts from random changes to the model, not from the model; take it out"
    if name == "target_modules" and "lm_head" in (value if isinstance(value, list) else [value]):
        return (
            "lm_head cannot have an adapter: TRL's loss reads its weight directly, and would never "
            "train one; take it out, or train the whole module with modules_to_save: [lm_head]"
        )
    if name not in fields:
        way_out = f"; use {RENAMED[name]}" if name in RENAMED else suggest(name, list(fields))
        if name in GONE:
            way_out = f"; {GONE[name]}"
        return f"not a field of {class_label(options_class)}{way_out}"
    annotation = fields[name]
    if annotation is None or _accepts(annotation, value):
        enum = _ENUMS.get(name)  # read where it is asked for: its file is long
        choices = _members(*enum) if enum else _choices(options_class).get(name)
        if isinstance(value, dict) and (hints := list(nested_hints(value, name))):
            return "; ".join(hints)
        if choices is None or value is None or value in choices:
            return _out_of_range(name, value)
        return f"{value!r} is none of {_listed(choices, str(value))}"
    if value is False and name.endswith("_strategy"):
        return 'YAML takes no for false; write "no", in quotes'
    if isinstance(value, str) and (hint := number_hint(value, whole=not _accepts(annotation, 0.5))):
        return hint
    if isinstance(value, (dict, list)) and (hints := list(nested_hints(value, name))):
        return "; ".join(hints)
    return f"{value!r} is {_describe_type(value)}, expected {_readable(annotation)}"


def _listed(choices: list[str], given: str) -> str:
    """Choices as a list: of many those that begin like what was given, or the first."""
    near = [one for one in choices if one.startswith(given)]
    if len(choices) <= _MOST_CHOICES:
        return ", ".join(choices) + suggest(given, choices)
    shown = (near or choices)[:_MOST_CHOICES]
    hint = "" if near else suggest(given, choices)
    return f"{', '.join(shown)} and {len(choices) - len(shown)} others{hint}"


def nested_hints(value: Any, place: str) -> Iterator[str]:
    """Say how to write each number that is text in mappings and lists, by its place in them.

    Of what stands there the libraries declare no types, and none of their options takes a text
    that could be read as a number, but for names of modules.
    """
    if isinstance(value, str):
        if any(character.isdigit() for character in value) and (hint := number_hint(value)):
            yield f"{place}: {hint}"
        return
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if isinstance(part, (str, dict, list)) and "modules" not in str(key):
            inner = f"{place}.{key}" if isinstance(value, dict) else f"{place}[{key}]"
            yield from nested_hints(part, inner)


def _out_of_range(name: str, value: Any) -> str | None:
    if name not in RANGES or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None  # the reader has said what is wrong with NaN and infinity
    is_inside, words = RANGES[name]
    return None if is_inside(value) else f"{value} must be {words}"


def _problem_with_trackers(named: list[Any]) -> str | None:
    known = ("none", *TRACKERS)
    wrong = [str(one) for one in named if one not in (None, *known)]
    if wrong:
        return f"{', '.join(wrong)}: give of {', '.join(known)}"
    reasons = [reason for one in named if one in TRACKERS and (reason := missing(one))]
    return f"{'; '.join(reasons)}, or write none: no result depends on it" if reasons else None


def _accepts(annotation: ast.expr, value: Any) -> bool:
    """Whether `value` fits an annotation. Names that are not built-in types accept plain text."""
    if isinstance(annotation, ast.Constant):
        if isinstance(annotation.value, str):
            return _accepts(ast.parse(annotation.value, mode="eval").body, value)
        return value is None
    if isinstance(annotation, ast.BinOp):
        return _accepts(annotation.left, value) or _accepts(annotation.right, value)
    if isinstance(annotation, ast.Subscript):
        return _accepts_generic(annotation, value)
    name = annotation.id if isinstance(annotation, ast.Name) else None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "float":
        return is_number
    if name == "int":
        return isinstance(value, int) and is_number
    simple = {"bool": bool, "str": str, "dict": dict, "list": list, "tuple": list}
    if name in simple:
        return isinstance(value, simple[name])
    return name == "Any" or isinstance(value, (str, dict))  # an enum, or a nested options class


def _accepts_generic(annotation: ast.Subscript, value: Any) -> bool:
    outer = annotation.value.id if isinstance(annotation.value, ast.Name) else ""
    inner = annotation.slice
    parts = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
    if outer == "Optional":
        return value is None or _accepts(inner, value)
    if outer == "Union":
        return any(_accepts(part, value) for part in parts)
    if outer == "Literal":
        literals = [part.value for part in parts if isinstance(part, ast.Constant)]
        return any(value == literal and type(value) is type(literal) for literal in literals)
    if outer in ("list", "List", "tuple", "Tuple"):
        return isinstance(value, list) and all(
            any(_accepts(part, item) for part in parts) for item in value
        )
    return isinstance(value, dict) if outer in ("dict", "Dict") else True


def number_hint(text: str, *, whole: bool = False) -> str | None:
    """Say how to write a number that YAML took for text (5e-7, or '4' in quotes), else None.

    `whole` is for keys that take whole numbers only: 1e3 is 1000 there.
    """
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return f"'{text}' is not a finite number"
    if whole and not number.is_integer():
        return f"'{text}' is not a whole number"
    mantissa, exponent, power = text.strip().lower().partition("e")
    if exponent and ("." not in mantissa or power[0] not in "+-"):
        point = "" if "." in mantissa else ".0"
        written = f"{number:.0f}" if whole else f"{mantissa}{point}e{int(power):+d}"
        return f"YAML takes '{text}' for text; write {written}"
    return f"text '{text}': a number stands without quotes, {number:g}"


def _describe_type(value: Any) -> str:
    words = {bool: "true/false", int: "a whole number", float: "a number", str: "text"}
    words |= {list: "a list", dict: "a mapping", type(None): "empty"}
    return words.get(type(value), type(value).__name__)


def _readable(annotation: ast.expr) -> str:
    words = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}
    words |= {"None": "empty", "|": "or"}
    return " ".join(words.get(word, word) for word in ast.unparse(annotation).split())
