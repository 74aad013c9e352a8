"""`bashrac clean`: lists and removes results that no recipe needs any more.

A recipe needs the steps of its last run (`runs/*/plan.json`). Results from before an edit, or of
other `--set` values, are listed too: nothing tells a variant that is still wanted from one that is
not, so `clean` asks. A variant run under a name of its own (`--set name=...`) is kept, and that run
computes nothing again, since names decide no result. To give up a recipe, delete `runs/<recipe>`.

Only folders of `runs/steps` are ever touched, and none that a process works on or still needs. A
folder is renamed before it is removed, so that half of one is never read as a result.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, StepHeldError
from pipeline.plan.changes import MEMORY, read_identities
from pipeline.steps import artifact, lock
from pipeline.steps.spec import STEP_FOLDER, step_folder
from pipeline.text import format_bytes, format_count

_WHY = """\
These are results from before an edit, of other --set values, or of a recipe that is gone. To keep
a variant, run it once under a name of its own (--set name=...); nothing is computed again."""
_WRITER = re.compile(r"\.(\d+)\.tmp$")


@dataclass(frozen=True)
class Leftover:
    """Something to remove: a step's folder, or what a killed process was writing."""

    path: Path
    size: int
    words: str


def clean(runs: Path, *, yes: bool) -> str:
    """List what no recipe needs, ask, remove it; returns the last line to print.

    Args:
        runs: the folder of all results.
        yes: whether to remove without asking.

    Raises:
        InputError: when there is no such folder, or a recipe's last run cannot be read, so that
            what it needs is not known.
    """
    if not (runs / "steps").is_dir():
        raise InputError(
            f"there is no folder {runs / 'steps'}; give the results folder with --runs"
        )
    found = find(runs)
    if not found:
        return f"nothing to remove in {runs / 'steps'}: a recipe's last run needs every result"
    steps = runs / "steps"
    print(f"not needed by the last run of any recipe, in {steps}:")
    for one in found:
        print(f"  {one.path.relative_to(steps)}  {format_bytes(one.size)}  {one.words}")
    print(_WHY)
    if not yes and not sys.stdin.isatty():
        return (
            f"{_summary(found)}; nothing removed, since there is nobody to ask; --yes removes them"
        )
    if not yes and not _agreed(f"remove {_summary(found)}? [y/N] "):
        return "nothing removed"
    wanted = {one.path for one in found}
    # A run may have begun while the question stood; what it needs is not listed any more.
    removed = [one for one in find(runs) if one.path in wanted and _remove(one.path, steps)]
    kept = len(found) - len(removed)
    return f"removed {_summary(removed)}{f'; kept {kept}, in use by now' if kept else ''}"


def find(runs: Path) -> list[Leftover]:
    """What no recipe needs and no process works on or needs, sorted by name.

    Raises:
        InputError: as `clean`.
    """
    steps, folders = runs / "steps", step_folders(runs)
    busy, used = in_use(folders)
    needed = pointed_at(runs) | used
    found = {
        path: Leftover(path, _size(path), _describe(path))
        for name, path in folders.items()
        if name not in needed
    }
    for path in sorted(steps.glob("**/.*.tmp")):
        is_listed = any(place in found for place in path.parents)
        if not (is_listed or _owner(path, steps).name in busy or _is_being_written(path)):
            words = "half-written by a process that was stopped"
            found[path] = Leftover(path, _size(path), words)
    return list(found.values())


def step_folders(runs: Path) -> dict[str, Path]:
    """The folders of all steps, by name."""
    return {
        path.name: path
        for path in sorted((runs / "steps").glob("*"))
        if path.is_dir() and not path.is_symlink() and STEP_FOLDER.fullmatch(path.name)
    }


def in_use(folders: dict[str, Path]) -> tuple[set[str], set[str]]:
    """The folders that processes work on, and those with all that they read."""
    busy = {name for name, folder in folders.items() if lock.held_by(folder)}
    return busy, _with_inputs(busy, folders)


def pointed_at(runs: Path, *, without: str = "") -> set[str]:
    """The folders of every recipe's last run; `without` is the name of a recipe to leave out.

    Raises:
        InputError: when a recipe's last run cannot be read.
    """
    names = set()
    for file in sorted(runs.glob(f"*/{MEMORY}")):
        if file.parent.name == without:
            continue
        try:
            for identity in read_identities(file).values():
                names.add(step_folder(identity["kind"], artifact.fingerprint(identity)))
        except InputError as error:
            raise InputError(f"nothing removed: {error}") from None
    return names


def _with_inputs(names: set[str], folders: dict[str, Path]) -> set[str]:
    """These steps and, again and again, the steps they read."""
    by_digits = {name.rpartition("-")[2]: name for name in folders}
    found: set[str] = set()
    while names:
        found |= names
        specs = [_written_spec(folders[name]) for name in names]
        inputs = [value for spec in specs for value in spec.get("inputs", {}).values()]
        digits = {value[:16] for value in inputs if isinstance(value, str)}
        names = {by_digits[one] for one in digits & by_digits.keys()} - found
    return found


def _written_spec(folder: Path) -> artifact.JsonObject:
    """The step's spec as step.json holds it, {} where there is none."""
    written = artifact.read_object(folder / artifact.SPEC)
    if "identity" in written:  # of earlier versions
        return {**written, "inputs": written["identity"]["inputs"]}
    return written.get("spec", {})


def _describe(folder: Path) -> str:
    """What a step's folder holds, in words."""
    spec = _written_spec(folder)
    words = "unknown"
    if spec:
        words = f"{spec.get('stage')}: {spec.get('title')}, seed {spec.get('seed')}"
    ended = artifact.read_object(folder / artifact.RECORD).get("ended")
    return f"{words}, {f'made {ended[:10]}' if ended else 'not finished'}"


def _owner(path: Path, steps: Path) -> Path:
    """The folder right below `steps` that a path is or lies in."""
    return steps / path.relative_to(steps).parts[0]


def _remove(path: Path, steps: Path) -> bool:
    """Remove a file or folder unless a process works on its step; returns whether it is gone."""
    owner = _owner(path, steps)
    is_step = STEP_FOLDER.fullmatch(owner.name) is not None
    try:
        with lock.held(owner) if is_step else nullcontext():
            if path == owner and is_step:
                path = path.rename(path.with_name(f".{path.name}.{os.getpid()}.tmp"))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except StepHeldError:
        return False
    return True


def _is_being_written(path: Path) -> bool:
    """Whether the process that a temporary file is named after is still there."""
    writer = _WRITER.search(path.name)
    if writer is None:
        return False  # its step's lock tells
    try:
        os.kill(int(writer[1]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; links count as themselves."""
    files = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def _summary(found: list[Leftover]) -> str:
    """Return e.g. '3 folders and 1 leftover, 1.2 MB'."""
    folders = sum(STEP_FOLDER.fullmatch(one.path.name) is not None for one in found)
    counts = ((folders, "folder"), (len(found) - folders, "leftover"))
    words = " and ".join(format_count(count, noun) for count, noun in counts if count)
    return f"{words or 'nothing'}, {format_bytes(sum(one.size for one in found))}"


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
