"""`bashrac evaluate`: a recipe of one stage that trains nothing, made from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import BENCHMARKS
from pipeline.artifact import fingerprint
from pipeline.errors import InputError, suggest
from pipeline.recipe import written_out
from pipeline.shipped import user_path


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
) -> dict[str, Any]:
    """Return the recipe, unchecked, that evaluates a model as it is.

    Args:
        model: hub id, folder, the folder of a step, or embedded name.
        benchmarks: names.
        data: test rows, instead of the benchmarks' own.
        limit: only the first rows of each benchmark.
        task: what the rows of `rouge` are.
        judge: as a recipe's `judge:` in plain text.
        judge_url: the judge's endpoint.
        overrides: what goes over the recipe; part of its name.

    Raises:
        InputError: for an unknown benchmark, one source for several kinds of rows, `rouge` without
            rows, or a URL without a judge.
    """
    for name in benchmarks:
        if name not in BENCHMARKS:
            known = ", ".join(BENCHMARKS)
            hint = suggest(name, list(BENCHMARKS))
            raise InputError(f"--benchmark {name}: no such benchmark{hint}; there are {known}")
    tasks = {BENCHMARKS[name].task for name in benchmarks} - {None}
    if data is not None and len(tasks) > 1:
        raise InputError(
            "--data is for benchmarks that ask the same rows; of several kinds give each its own: "
            "--set benchmarks.NAME.data=FILE"
        )
    if "rouge" in benchmarks and data is None:
        raise InputError("rouge compares with the references of rows of yours: add --data")
    own = task or next(iter(tasks), None)
    if own is None:
        raise InputError("rouge needs to know what the rows are: add --task")
    raw: dict[str, Any] = {
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


def _source(name: str, data: str | None, limit: int | None) -> dict[str, Any]:
    hub = BENCHMARKS[name].hub
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
