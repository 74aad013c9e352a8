"""Labels of points in a plot, placed so that none covers another or a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

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


# Left, right, top and bottom, in em.
_Box = tuple[float, float, float, float]


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
    taken = [[_mark_box(point, width) for point in points] for width in widths]
    placed = []
    for number, point in enumerate(points):
        for text, (dx, dy, anchor) in product(
            dict.fromkeys((point.text, shortened(point.text, _SHORT))), _OFFSETS
        ):
            label = Label(text, point.x, point.y, dx, dy, anchor, abs(dy) > _FAR)
            boxes = [_label_box(label, width) for width in widths]
            if all(
                box[0] >= 0 and box[1] <= width and top - 0.6 <= box[2] and box[3] <= bottom
                and not any(_meet(box, other) for i, other in enumerate(others) if i != number)
                for box, width, others in zip(boxes, widths, taken, strict=True)
            ):  # fmt: skip
                placed.append(label)
                for box, others in zip(boxes, taken, strict=True):
                    others.append(box)
                break
    return placed


def _mark_box(point: PointAt, width: float) -> _Box:
    x = point.x / 100 * width
    return x - _MARK, x + _MARK, point.y - _MARK, point.y + _MARK


def _label_box(label: Label, width: float) -> _Box:
    x, wide = label.x / 100 * width + label.dx, len(label.text) * _CHARACTER
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[label.anchor]
    top = label.y + label.dy - 0.9
    return left, left + wide, top, top + _LINE


def _meet(one: _Box, other: _Box) -> bool:
    across = one[0] < other[1] and other[0] < one[1]
    return across and one[2] < other[3] and other[2] < one[3]
