"""Finds the recipes and launch configs that come with bashrac, in a checkout and in a wheel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, suggest
from pipeline.plain_yaml import read_yaml_file

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Return the shipped folder `recipes` or `accelerate_configs`."""
    in_wheel = _PACKAGE / "shipped" / name
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / name


def recipe_names() -> list[str]:
    """Names of the shipped recipes, as `bashrac run NAME` takes them."""
    return sorted(path.stem for path in folder("recipes").glob("*.yaml"))


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
    if not isinstance(config, dict):
        raise InputError(f"{path}: not an accelerate config; `accelerate config` writes one")
    counts = {key: config.get(key, 1) for key in ("num_processes", "num_machines")}
    for key, count in counts.items():
        if type(count) is not int or count < 1:
            raise InputError(f"{path}: not an accelerate config ({key} must be a number above 0)")
    if str(config.get("mixed_precision", "no")) not in ("no", "None", "False"):
        raise InputError(
            f"{path}: mixed_precision changes results, so it belongs into the recipe: set it to "
            "'no' here and write trainer: {bf16: true}"
        )
    return Launch(
        path=path.resolve(),
        processes=counts["num_processes"],
        machines=counts["num_machines"],
        use_cpu=bool(config.get("use_cpu", False)),
    )
