"""Finds the recipes and launch configs that come with bashrac, in a checkout and in a wheel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, suggest
from pipeline.recipe.strict_yaml import read_yaml_file
from pipeline.recipe.trl_fields import read_fields

# How weights lie in the processes of a launch; DeepSpeed's ways are `zero(stage)`.
REPLICATED, FSDP2 = "whole weights in each process", "FSDP2"
_KNOWN = (
    "NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_MLU", "MULTI_XPU", "MULTI_HPU", "FSDP",
    "DEEPSPEED",
)  # fmt: skip
_PACKAGE = Path(__file__).resolve().parent.parent


def folder(name: str) -> Path:
    """Return the shipped folder `recipes` or `accelerate_configs`."""
    in_wheel = _PACKAGE / "shipped" / name
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / name


def recipe_names() -> list[str]:
    """Names of the shipped recipes, as `bashrac run NAME` takes them."""
    return sorted(path.stem for path in folder("recipes").glob("*.yaml"))


def find_script(name: str) -> str:
    """Return where a script of `recipes/launch` lies, given by its name alone; else the name."""
    script = folder("recipes") / "launch" / name
    return str(script) if "/" not in name and script.is_file() else name


def user_path(text: str) -> Path:
    """Return a path as a user writes it, `~` resolved; it need not exist.

    Raises:
        InputError: when no file can be called that, or it may not be looked at.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{text[:80]!r} cannot be a path here ({reason}); give another") from None
    return path


def find_recipe(source: str) -> Path:
    """Return the file of a recipe given as a path or as a shipped name.

    Raises:
        InputError: when there is neither; it names the shipped recipes.
    """
    path = user_path(source)
    if path.is_file():
        return path
    named = folder("recipes") / f"{source}.yaml"
    if "/" not in source and named.is_file():
        return named
    names = recipe_names()
    hint = suggest(path.stem, names)
    if path.is_dir():
        hint = ", which is a folder"
    raise InputError(
        f"there is no recipe file {source}{hint}\n  shipped recipes: {', '.join(names)}\n"
        "  `bashrac copy demo my.yaml` writes one to start from"
    )


@dataclass(frozen=True)
class Launch:
    """A launch config: the file for `accelerate launch`, and what it asks for.

    `kind` says how weights are laid out over processes: `REPLICATED`, or sharded by `FSDP2` or by
    DeepSpeed's `ZeRO-1`, `ZeRO-2` (optimizer states only, or gradients too) or `ZeRO-3`.
    """

    path: Path
    processes: int
    machines: int
    use_cpu: bool
    kind: str


# The class whose fields are the keys of a file, and keys that accelerate turns into others.
_CONFIG = tuple(
    ("accelerate", "commands/config/config_args.py", name)
    for name in ("ClusterConfig", "BaseConfig")
)
_CONVERTED = ("fp16", "dynamo_backend")


def read_launch(name_or_file: str) -> Launch:
    """Read a launch config by shipped name or by path.

    Raises:
        InputError: when there is no such config, it is not an accelerate config, accelerate would
            not do what it asks for, or it would change results.
    """
    path = user_path(name_or_file)
    if not path.is_file() and "/" not in name_or_file:
        path = folder("accelerate_configs") / f"{name_or_file}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in folder("accelerate_configs").glob("*.yaml"))
        raise InputError(
            f"no launch config {name_or_file!r}{suggest(name_or_file, names)}; "
            f"give a file, or one of {', '.join(names)}"
        )
    config = read_yaml_file(path)
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise InputError(
            f"{path}: not an accelerate config, as it has no distributed_type; `accelerate config` "
            "writes one"
        )
    known = [*read_fields(_CONFIG), *_CONVERTED]
    for key in (key for key in config if key not in known):
        raise InputError(f"{path}: {key} is no key of accelerate's{suggest(str(key), known)}")
    for key in ("fsdp_config", "deepspeed_config"):
        if not isinstance(config.get(key) or {}, dict):
            raise InputError(f"{path}: {key} must be a mapping of keys")
    counts = {key: config.get(key, 1) for key in ("num_processes", "num_machines")}
    for key, count in counts.items():
        if type(count) is not int or count < 1:
            raise InputError(f"{path}: {key} is {count!r}; write a whole number, 1 or more")
    use_cpu = config.get("use_cpu", False) is True
    if wrong := _wrong(config, use_cpu=use_cpu, **counts):
        raise InputError(f"{path}: {wrong}")
    return Launch(
        path=path.resolve(),
        processes=counts["num_processes"],
        machines=counts["num_machines"],
        use_cpu=use_cpu,
        kind=_kind(config),
    )


def _asked(config: dict[str, Any]) -> str:
    """The distributed type; YAML reads NO without quotes as false."""
    asked = config["distributed_type"]
    return "NO" if asked is False else str(asked)


def _kind(config: dict[str, Any]) -> str:
    asked = _asked(config)
    if asked == "FSDP":
        return FSDP2
    if asked == "DEEPSPEED":
        return zero((config.get("deepspeed_config") or {}).get("zero_stage", 2))
    return REPLICATED


def zero(stage: object) -> str:
    """The kind of launch that DeepSpeed's ZeRO of a stage is."""
    return f"ZeRO-{stage}"


def _wrong(
    config: dict[str, Any], *, use_cpu: bool, num_processes: int, num_machines: int
) -> str | None:
    """Why a config cannot be used: accelerate would do something else, or results would change."""
    asked = _asked(config)
    fsdp, deepspeed = (config.get(f"{name}_config") or {} for name in ("fsdp", "deepspeed"))
    if str(config.get("mixed_precision", "no")) not in ("no", "None", "False") or "fp16" in config:
        return (
            "mixed_precision changes results, so it belongs into the recipe: set it to 'no' here "
            "and write precision: bfloat16 (or leave auto)"
        )
    if num_processes % num_machines:
        return f"num_processes {num_processes} is for all of the {num_machines} machines together"
    if asked not in _KNOWN:
        return f"distributed_type {asked} is not known here; give one of {', '.join(_KNOWN)}"
    if asked in ("NO", "MULTI_CPU") and num_processes > 1:
        return (
            f"with distributed_type {asked} accelerate starts one process, not {num_processes}; "
            "write distributed_type: MULTI_GPU (beside use_cpu: true it means processes on CPUs)"
        )
    if asked in ("FSDP", "DEEPSPEED") and use_cpu:
        return (
            f"on a CPU accelerate turns {asked} into plain data parallelism without a word; write "
            "distributed_type: MULTI_GPU, which is that, or use_cpu: false"
        )
    if asked == "FSDP" and fsdp.get("fsdp_version", 1) != 2:
        return (
            "FSDP means version 1 where nothing else is said; write fsdp_config: {fsdp_version: 2} "
            "(`accelerate to-fsdp2` converts a file)"
        )
    elsewhere = deepspeed.get("deepspeed_multinode_launcher") != "standard"
    if asked == "DEEPSPEED" and num_machines > 1 and elsewhere:
        return (
            "DeepSpeed would start the other machines itself; write deepspeed_config: "
            "{deepspeed_multinode_launcher: standard}"
        )
    owned = ("deepspeed_config_file", "gradient_accumulation_steps", "gradient_clipping")
    for key in (key for key in owned if deepspeed.get(key, "auto") != "auto"):
        return (
            f"deepspeed_config.{key} changes results, so it belongs into the recipe: leave it out "
            "here and write batch_size, micro_batch_size or trainer options"
        )
    if config.get("parallelism_config"):
        return "parallelism_config shares a row among processes; batch_size counts rows of each"
    return None
