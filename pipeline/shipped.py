"""Finds the recipes and launch configs that come with bashrac, in a checkout and in a wheel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.errors import InputError, suggest

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Return the shipped folder `recipes` or `accelerate_configs`."""
    in_wheel = _PACKAGE / "shipped" / name
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / name


def recipe_names() -> list[str]:
    """Names of the shipped recipes, as `bashrac run NAME` takes them."""
    return sorted(path.stem for path in folder("recipes").glob("*.yaml"))


def find_recipe(source: str) -> Path:
    """Return the file of a recipe given as a path or as a shipped name.

    Raises:
        InputError: when there is neither; it names the shipped recipes.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    named = folder("recipes") / f"{source}.yaml"
    if "/" not in source and named.is_file():
        return named
    names = recipe_names()
    hint = suggest(path.stem, names)
    raise InputError(
        f"there is no recipe file {source}{hint}\n  shipped recipes: {', '.join(names)}\n"
        "  `bashrac copy demo my.yaml` writes one to start from"
    )


@dataclass(frozen=True)
class Launch:
    """A launch config: the file for `accelerate launch`, and what it asks for."""

    path: Path
    processes: int
    machines: int
    use_cpu: bool


def read_launch(name_or_file: str) -> Launch:
    """Read a launch config by shipped name or by path.

    Raises:
        InputError: when there is no such config or it is not an accelerate config.
    """
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        path = folder("accelerate_configs") / f"{name_or_file}.yaml"
    if (
        "/" in name_or_file and not Path(name_or_file).expanduser().is_file()
    ) or not path.is_file():
        names = sorted(file.stem for file in folder("accelerate_configs").glob("*.yaml"))
        raise InputError(
            f"no launch config {name_or_file!r}{suggest(name_or_file, names)}; "
            f"give a file, or one of {', '.join(names)}"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    processes = config.get("num_processes", 1) if isinstance(config, dict) else None
    if not isinstance(processes, int) or processes < 1:
        raise InputError(f"{path}: not an accelerate config (num_processes must be a number)")
    if str(config.get("mixed_precision", "no")) not in ("no", "None", "False"):
        raise InputError(
            f"{path}: mixed_precision changes results, so it belongs into the recipe: set it to "
            "'no' here and write trainer: {bf16: true}"
        )
    return Launch(
        path=path.resolve(),
        processes=processes,
        machines=config.get("num_machines", 1),
        use_cpu=bool(config.get("use_cpu", False)),
    )
