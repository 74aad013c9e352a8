"""`bashrac evaluate`: a recipe of one stage that trains nothing, made from the command line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks.registry import BENCHMARKS, benchmark_of
from pipeline.data.builtin import rows
from pipeline.data.files import rows_of_file
from pipeline.data.tasks import BUILT_IN, RowError, example_of
from pipeline.errors import InputError, suggest
from pipeline.recipe.schema import Source, written_out
from pipeline.recipe.shipped import user_path
from pipeline.recipe.strict_yaml import Raw
from pipeline.steps.artifact import fingerprint


def recipe_for(
    model: str,
    benchmarks: list[str],
    *,
    data: str | None,
    limit: int | None,
    task: str | None,
    judge: str | None,
    judge_url: str | None,
    overrides: Sequence[str] = (),
) -> Raw:
    """Return the recipe, unchecked, that evaluates a model as it is.

    Args:
        model: hub id, folder, the folder of a step, or embedded name.
        benchmarks: names.
        data: test rows, instead of the benchmarks' own.
        limit: only the first rows of each benchmark.
        task: what the rows of `rouge`, `accuracy`, `gap` and `recovery` are; by default what they
            look like.
        judge: as a recipe's `judge:` in plain text.
        judge_url: the judge's endpoint.
        overrides: what goes over the recipe; part of its name.

    Raises:
        InputError: for an unknown benchmark, one source for several kinds of rows, `rouge` or `gap`
            without rows, or a URL without a judge.
    """
    for name in benchmarks:
        if name not in BENCHMARKS:
            known = ", ".join(BENCHMARKS)
            hint = suggest(name, list(BENCHMARKS))
            raise InputError(f"--benchmark {name}: no such benchmark{hint}; there are {known}")
    tasks = {benchmark_of(name).task for name in benchmarks} - {None}
    if data is not None and len(tasks) > 1:
        raise InputError(
            "--data is for benchmarks that ask the same rows; of several kinds give each its own: "
            "--set benchmarks.NAME.data=FILE"
        )
    of_yours = next((name for name in benchmarks if benchmark_of(name).hub is None), None)
    if of_yours is not None and data is None:
        raise InputError(f"{of_yours} compares with the references of rows of yours: add --data")
    own = task or next(iter(tasks), None) or (data and _task_of(data))
    if not own:
        raise InputError(f"{of_yours} needs to know what the rows are: add --task")
    raw: Raw = {
        "task": "chat" if own == "alpaca" else own,
        "model": _folder(model),
        "stages": {"model": {"method": "base"}},
        "evaluate": list(benchmarks),
        "benchmarks": {name: {"data": _source(name, data, limit)} for name in benchmarks},
    }
    if judge is not None:
        raw["judge"] = written_out("judge", judge)
    if judge_url is not None:
        if judge is None or not judge.startswith("openai"):
            raise InputError("--judge-url needs --judge openai:MODEL")
        raw["judge"]["base_url"] = judge_url
    # Another question is another report: none is written over.
    digest = fingerprint([raw, list(overrides)])[:8]
    return {"name": f"evaluate-{_slug(model)}-{'-'.join(benchmarks)}-{digest}", **raw}


def _task_of(data: str) -> str | None:
    """What the rows of a built-in set or a local file are, where the first one can be but one."""
    source = Source(source=data)
    if source.builtin is not None:
        return rows.TASK_OF.get(source.builtin)
    if source.path is None or not source.path.is_file():
        return None
    _, row = next(iter(rows_of_file(source.path)), (None, None))
    possible = []
    for task in BUILT_IN:
        with contextlib.suppress(RowError):
            example_of(task, row or {})
            possible.append(task)
    return possible[0] if len(possible) == 1 else None


def _source(name: str, data: str | None, limit: int | None) -> Raw:
    hub = benchmark_of(name).hub
    own = {} if hub is None else hub.model_dump(exclude_none=True)
    source = own if data is None else {"source": data}
    return source if limit is None else {**source, "limit": limit}


def _folder(model: str) -> str:
    """A step's folder holds its model in a folder below, beside records that may change."""
    inner = user_path(model) / "model"
    return str(inner) if inner.is_dir() else model


def _slug(model: str) -> str:
    """A short name for results: the step of a step's model, else the end of the path or hub id."""
    parts = [part for part in Path(model).parts if part not in ("/", "..", ".")]
    last = parts[-2] if len(parts) > 1 and parts[-1] == "model" else "/".join(parts[-1:])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "model"
