"""What `bashrac logs` prints: the ends of a run's logs, which may be of another shell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import InputError, suggest, visible
from pipeline.recipe.schema import Recipe

_FOLLOW_SECONDS = 0.3
_MOST_BYTES = 1 << 20  # of a log's end


def find_logs(recipe: Recipe, runs: Path, *, stage: str | None, seed: int | None) -> list[Path]:
    """The logs of a recipe, or of one of its stages or seeds, the newest first.

    A stage that is swept has one for each of its points, unless `stage` names a point.

    Raises:
        InputError: when there is none, or no such stage.
    """
    known = list(recipe.stages)
    if stage is not None and stage.partition("@")[0] not in known:
        raise InputError(f"no stage {stage!r}{suggest(stage, known)}; stages: {', '.join(known)}")
    found = []
    for log in (runs / recipe.name / "logs").glob("*.log"):
        label, _, of_seed = log.stem.rpartition("-seed")
        is_stage = stage in (None, label, label.partition("@")[0])
        if is_stage and (seed is None or of_seed == str(seed)):
            found.append(log)
    if found:
        return sorted(found, key=lambda log: log.stat().st_mtime_ns, reverse=True)
    whose = recipe.name if stage is None else f"stage {stage} of {recipe.name}"
    where = f"in {runs / recipe.name / 'logs'}" + ("" if seed is None else f" for seed {seed}")
    shared = "" if stage is None else "; a step it shares is logged under the stage that ran it"
    raise InputError(f"{whose} has no log {where}: it has not been run there{shared}")


def log_text(find: Callable[[], list[Path]], lines: int, *, follow: bool) -> Iterator[str]:
    """The end of the newest log, then, with `follow`, whatever is added to the logs, endlessly.

    Args:
        find: returns the logs, the newest first; a run adds one for each stage.
        lines: how many to begin with.
        follow: whether to go on.
    """
    logs = find()
    shown = logs[0]
    read = {log: log.stat().st_size for log in logs}
    with shown.open("rb") as file:
        file.seek(max(read[shown] - _MOST_BYTES, 0))
        end = _readable(file.read(read[shown] - file.tell())).rstrip("\n").split("\n")
    yield "\n".join([f"==> {shown}", *end[-lines:], ""])
    while follow:
        time.sleep(_FOLLOW_SECONDS)
        for log in reversed(find()):
            with log.open("rb") as file:
                file.seek(read.get(log, 0))
                new = file.read()
            whole = max(new.rfind(b"\n"), new.rfind(b"\r")) + 1
            if whole:
                read[log] = read.get(log, 0) + whole
                yield ("" if log == shown else f"\n==> {log}\n") + _readable(new[:whole])
                shown = log


def _readable(written: bytes) -> str:
    """A log's text: the last state of a progress bar, and nothing that acts on a terminal."""
    lines = written.decode(errors="replace").split("\n")
    return "\n".join(visible(line.rstrip("\r").rpartition("\r")[2]) for line in lines)
