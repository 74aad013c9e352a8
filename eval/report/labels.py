"""Labels of points in a plot, placed so that none covers another or a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.report.plots import shortened

_CHARACTER, _LINE = 0.58, 1.15  # width and height of text, in em
_MARK = 0.45  # half of a mark, in em
_WIDEST = 48.0  # of a plot, in em of its text
# Where a label may stand, in em from its point: right, left, above, below, then further off.
_OFFSETS = (
    (0.7, 0.35, "start"), (-0.7, 0.35, "end"), (0.0, -0.75, "middle"), (0.0, 1.45, "middle"),
    (0.5, -0.6, "start"), (-0.5, -0.6, "end"), (0.5, 1.3, "start"), (-0.5, 1.3, "end"),
    (0.6, -1.7, "start"), (-0.6, -1.7, "end"), (0.6, 2.4, "start"), (-0.6, 2.4, "end"),
    (0.8, -2.9, "start"), (-0.8, -2.9, "end"), (0.8, 3.6, "start"), (-0.8, 3.6, "end"),
)  # fmt: skip
_SHORT = 18  # characters of a label that has no room otherwise
_FAR = 1.5  # from so many em on a thin line leads to the point


@dataclass(frozen=True)
class PointAt:
    """A point with words: its place in percent of the width and in em."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Label:
    """Words beside a point: the point's place, the words' offset in em and their anchor.

    Attributes:
        is_far: whether a line leads from the point to the words.
    """

    text: str
    x: float
    y: float
    dx: float
    dy: float
    anchor: str
    is_far: bool


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def place_labels(
    points: Sequence[PointAt], *, top: float, bottom: float, narrow: float
) -> list[Label]:
    """Place labels, cut where they must be; a point for whose words there is no room has none.

    Distances between points grow with the width of the screen and words do not, so what is placed
    must be free at all of several widths.

    Args:
        points: to be labelled.
        top: upper end of the plot in em.
        bottom: lower end in em.
        narrow: the least width of the plot in em.
    """
    widths = [narrow + (_WIDEST - narrow) * step / 6 for step in range(7)]
    taken: dict[float, list[_Box]] = {width: [] for width in widths}
    for width in widths:
        for point in points:
            x = point.x / 100 * width
            taken[width].append(_Box(x - _MARK, x + _MARK, point.y - _MARK, point.y + _MARK))
    placed = []
    for number, point in enumerate(points):
        for label in _candidates(point):
            boxes = {width: _box(label, width) for width in widths}
            if all(
                box.left >= 0
                and box.right <= width
                and top - 0.6 <= box.top
                and box.bottom <= bottom
                and not any(box.meets(other) for i, other in enumerate(taken[width]) if i != number)
                for width, box in boxes.items()
            ):
                placed.append(label)
                for width, box in boxes.items():
                    taken[width].append(box)
                break
    return placed


def _candidates(point: PointAt) -> Iterator[Label]:
    for text in dict.fromkeys((point.text, shortened(point.text, _SHORT))):
        for dx, dy, anchor in _OFFSETS:
            yield Label(text, point.x, point.y, dx, dy, anchor, abs(dy) > _FAR)


def _box(label: Label, width: float) -> _Box:
    x, wide = label.x / 100 * width + label.dx, len(label.text) * _CHARACTER
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[label.anchor]
    base = label.y + label.dy
    return _Box(left, left + wide, base - 0.9, base - 0.9 + _LINE)
