"""What `bashrac plan` says of differences that a recipe's seeds and test items can show."""

from __future__ import annotations

from eval.benchmarks import registry
from eval.stats.power import SCATTER, detectable, seeds_needed
from pipeline.recipe.schema import Recipe

# Test items of the benchmarks' sets on the hub. Others, as ROUGE, do not score right and wrong.
_ITEMS = {"gsm8k": 1319, "alpaca": 805, "tldr": 6553}
_POINTS = (1, 2, 5)
_MOST = 20  # seeds
_FEWEST = 30  # items; fewer are a trial run


def describe_findable(recipe: Recipe) -> list[str]:
    """Lines on the first benchmark whose items can be counted without loading them, or none."""
    if len(recipe.stages) < 2 and not recipe.points:
        return []
    counted = ((name, _test_items(recipe, name)) for name in recipe.evaluate if name in _ITEMS)
    benchmark, items = next(((name, n) for name, n in counted if n is not None), ("", 0))
    if items < _FEWEST:
        return []
    seeds = len(recipe.seeds)
    shown = seeds if seeds > 1 else 3
    found = f"{shown} seeds find a true difference of {detectable(items, shown):.1f} points"
    if seeds == 1:
        found = f"1 seed calls no method better than another; {found}"
    needed = {points: seeds_needed(points, items, most=_MOST) for points in _POINTS}
    each = [f"{of or f'more than {_MOST}'} for {points}" for points, of in needed.items()]
    return [
        f"what 4 in 5 reports would find, with {items} items of {benchmark}, if seeds scatter by "
        f"{SCATTER:g} point:",
        f"  {found}",
        f"  seeds needed: {', '.join(each)} points",
    ]


def _test_items(recipe: Recipe, benchmark: str) -> int | None:
    """How many test items a benchmark has, or None where only its rows tell."""
    source, hub = registry.test_source(recipe, benchmark), registry.benchmark_of(benchmark).hub
    if source is None or hub is None:
        return None
    whole = {"limit": None, "skip": 0, "revision": None}
    if source.model_copy(update=whole) != hub.model_copy(update=whole):
        return source.limit
    left = max(0, _ITEMS[benchmark] - source.skip)
    return min(left, source.limit or left)
