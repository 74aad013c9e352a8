"""The training-inference gap: slopes over rates, agreement with the reference, thirds by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least squares line through points.

    sum (x - mean x) (y - mean y) / sum (x - mean x)^2
    """
    middle, height = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle) ** 2 for a in x)


def agreement(answer: Sequence[int], reference: Sequence[int]) -> int:
    """Return how many tokens an answer has before the first that is not the reference's."""
    pairs = enumerate(zip(answer, reference, strict=False))
    differs = next((place for place, (ours, theirs) in pairs if ours != theirs), None)
    return min(len(answer), len(reference)) if differs is None else differs


def is_reference(answer: Sequence[int], reference: Sequence[int], end: int) -> bool:
    """Return whether an answer is the reference; none is one that was cut, and so has no end."""
    return list(answer) == list(reference) and reference[-1] == end


def thirds(lengths: Mapping[int, int]) -> dict[str, set[int]]:
    """Return the ids in thirds by falling under two lengths, by words for their lengths.

    Ids of one length are in the same third, so that thirds may differ in size, or be one or two.
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
