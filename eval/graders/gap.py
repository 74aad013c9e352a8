"""The training-inference gap: slopes over rates, agreement with the reference, thirds by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line.

    sum (x - mean x) (y - mean y) / sum (x - mean x)^2
    """
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def agreement(answer: Sequence[int], reference: Sequence[int]) -> int:
    """Return how many tokens an answer shares with the reference before they first differ."""
    pairs = enumerate(zip(answer, reference, strict=False))
    differs = next((place for place, (ours, theirs) in pairs if ours != theirs), None)
    return min(len(answer), len(reference)) if differs is None else differs


def is_reference(answer: Sequence[int], reference: Sequence[int], end: int) -> bool:
    """Return whether an answer equals the reference; never for one cut before its end token."""
    return list(answer) == list(reference) and reference[-1] == end


def thirds(lengths: Mapping[int, int]) -> dict[str, set[int]]:
    """Split ids into thirds by length; the keys describe the range of lengths.

    Ids of equal length are in the same third, so thirds may differ in size, and there may be fewer
    than three.
    """
    ordered = sorted(lengths.values())
    cuts = [ordered[-(-len(ordered) * part // 3) - 1] for part in (1, 2)]
    found: dict[int, set[int]] = {}
    for example, length in lengths.items():
        found.setdefault(sum(length > cut for cut in cuts), set()).add(example)
    named = {}
    for place in sorted(found):
        sizes = [lengths[example] for example in found[place]]
        named[f"{min(sizes)} to {max(sizes)}"] = found[place]
    return named
