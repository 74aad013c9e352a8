"""Problems of `eval_strategy`, which measures a loss while a stage trains, and of its rows."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import Problem
from pipeline.recipe.schema import Recipe, Source
from pipeline.recipe.trl_rules import HELD_OUT

_BY_LOSS = ("reduce_lr_on_plateau", "greedy")  # schedules that follow the held-out loss


def held_out_problems(recipe: Recipe) -> Iterator[Problem]:
    """Where `eval_strategy` or what goes with it cannot mean anything, or has no rows."""
    learning = {name for name, stage in recipe.stages.items() if recipe.trains_on_references(stage)}
    blocks = [("trainer", recipe.trainer, bool(learning))]
    blocks += [(f"stages.{n}.trainer", s.trainer, n in learning) for n, s in recipe.stages.items()]
    for key, given, learns in blocks:
        if given.get("lr_scheduler_type") in _BY_LOSS:
            message = "would train by held-out rows, which decide nothing here; choose another"
            yield Problem(f"{key}.lr_scheduler_type", message)
        asked = sorted(HELD_OUT & given.keys(), key=lambda name: name != "eval_strategy")
        strategy = {**recipe.trainer, **given}.get("eval_strategy", "no")
        message = ""
        if not asked:
            continue
        if not learns and given.get("eval_strategy") != "no":
            message = (
                "measures the loss of held-out references, and this trains on pairs, of which "
                "none are held out; take it out: benchmarks evaluate the stage after training"
            )
        elif not any("eval_strategy" in block for _, block, _ in blocks):
            message = "does nothing without eval_strategy: steps, or epoch"
        elif learns and strategy in ("steps", "epoch") and recipe.data.validation is None:
            message = (
                "needs rows that are not trained on: add data.validation, a file of its own, or "
                "rows that skip and limit keep apart from data.train"
            )
        if message:
            yield Problem(f"{key}.{asked[0]}", message)
    held, train = recipe.data.validation, recipe.data.train
    if held is None or train is None:
        return
    for part in train.parts or [train]:
        if (row := _shared_row(held, part)) is not None:
            message = f"row {row + 1:,} of {held.source} is in data.train too; keep the two apart"
            yield Problem("data.validation", f"{message} with skip and limit")


def _shared_row(held: Source, train: Source) -> int | None:
    """The first row, from 0, that both read; a step compares what rows hold, too."""
    names = ("source", "file", "name", "revision")
    if any(getattr(held, name) != getattr(train, name) for name in names):
        return None
    has_splits = held.path is None or held.path.is_dir()
    if has_splits and held.split_for("validation") != train.split_for("train"):
        return None
    first = max(held.skip, train.skip)
    return first if first < min(one.stop or float("inf") for one in (held, train)) else None
