"""Layout of charts: lines with bands, or points with bars, as SVG coordinates.

As in `eval.report.plots`, x is in percent of the width and y in em, so that text keeps its size on
any screen. SVG has no such units for lines and bands: they are drawn in a nested picture of 100 by
the height, stretched over the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from eval.report.charts import format_x, places_of, three_digits
from eval.report.plots import format_ticks, nice_ticks, shortened
from eval.report.text import format_number
from eval.report.types import Chart, Curve

# With more curves than this, bands would cover each other: each curve gets a small plot of its own.
MOST_BANDS = 4
# Marks, in pixels around a point. With colours and filled or open marks, 24 curves look different.
_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.8L4.6 3.4H-4.6z",
    "M0 -5L5 0L0 5L-5 0z",
    "M0 4.8L4.6 -3.4H-4.6z",
    "M-4.4 -1.5h2.9v-2.9h3v2.9h2.9v3h-2.9v2.9h-3v-2.9h-2.9z",
)
COLOURS, DASHES = 8, 4


@dataclass(frozen=True)
class Frame:
    """The axes of a plot.

    Attributes:
        left, right: ends of the x axis, in percent of the width.
        inset: room left of the first point, in percent.
        top, bottom: ends of the y axis, in em.
        height: of the whole plot, in em.
        narrow: the width on the narrowest screen, in em.
    """

    left: float
    right: float
    inset: float
    top: float
    bottom: float
    height: float
    narrow: float


WHOLE = Frame(left=13, right=96, inset=2.5, top=0.7, bottom=15.8, height=17.7, narrow=24.0)
SMALL = Frame(left=21, right=93, inset=5, top=0.7, bottom=6.7, height=8.7, narrow=11.0)


@dataclass(frozen=True)
class Series:
    """A curve, in (percent, em).

    Attributes:
        style: CSS classes that choose colour and dashes.
        shape: of its marks, an SVG path in pixels.
        marks: its points.
        bars: their intervals, as (x, y of the low end, y of the high end).
        line, band: points of an SVG polyline and polygon, '' for none.
    """

    name: str
    style: str
    shape: str
    marks: list[tuple[float, float]]
    bars: list[tuple[float, float, float]]
    line: str
    band: str


@dataclass(frozen=True)
class LinePlot:
    """A plot of curves with its axes."""

    id: str
    title: str
    description: str
    frame: Frame
    series: list[Series]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class ChartView:
    """A chart laid out.

    Attributes:
        plot: all curves, the baseline's drawn last.
        panels: a small plot for each curve, where there are many.
        legend: the curves in the chart's order; of points that are not joined, each point.
        note: how to read it.
    """

    chart: Chart
    plot: LinePlot
    panels: list[LinePlot]
    legend: list[Series]
    note: str


def view_of(chart: Chart, baseline: str | None) -> ChartView | None:
    """Lay a chart out; None where it has no points."""
    curves = [curve for curve in chart.curves if curve.points]
    if not curves:
        return None
    if not chart.is_joined:  # each point has a mark and a line of the legend of its own
        curves = [
            Curve(point.label or curve.name, [point]) for curve in curves for point in curve.points
        ]
    chart = replace(chart, curves=curves)
    many = len(curves) > MOST_BANDS and chart.is_joined
    whole, small = _Layout(chart, WHOLE, baseline), _Layout(chart, SMALL, baseline)
    base = [curve for curve in curves if curve.name == baseline and chart.is_joined]
    plot = whole.plot("", chart.title, curves, with_bands=not many)
    panels = [
        small.plot(f"-{i}", curve.name, [*(b for b in base if b is not curve), curve])
        for i, curve in enumerate(curves)
        if many
    ]
    names = [curve.name for curve in curves]
    legend = sorted(plot.series, key=lambda one: names.index(one.name))
    has_bands = any(series.band for one in [plot, *panels] for series in one.series)
    notes = [f"{'Bands' if has_bands else 'Bars'}: {chart.intervals}."] if chart.intervals else []
    if panels:
        beside = f", beside that of {baseline} (thick)" if base else ""
        notes.append(f"The small plots show each curve by itself{beside}, on the same axes.")
    notes += ["The horizontal axis is logarithmic."] if chart.is_log else []
    return ChartView(chart, plot, panels, legend, " ".join([*notes, chart.note]).rstrip())


class _Layout:
    """The scales of a chart in a frame; every plot of the chart has the same."""

    def __init__(self, chart: Chart, frame: Frame, baseline: str | None):
        self.chart, self.frame, self.baseline = chart, frame, baseline
        self.places = places_of(chart)
        cells = [point.cell for curve in chart.curves for point in curve.points]
        numbers = [n for cell in cells for n in (cell.low, cell.value, cell.high)]
        self.y_values = nice_ticks(min(numbers), max(numbers))
        self.x_scale = _x_scale(chart, self.places)

    def x(self, place: float | str) -> float:
        frame = self.frame
        left = frame.left + frame.inset
        return round(left + (frame.right - left) * self.x_scale(place), 2)

    def y(self, value: float) -> float:
        low, high = self.y_values[0], self.y_values[-1]
        share = (value - low) / (high - low)
        return round(self.frame.bottom - (self.frame.bottom - self.frame.top) * share, 2)

    def plot(
        self, suffix: str, title: str, curves: Sequence[Curve], *, with_bands: bool = True
    ) -> LinePlot:
        chart, is_small = self.chart, self.frame is SMALL
        ordered = sorted(curves, key=lambda curve: curve.name == self.baseline and not is_small)
        return LinePlot(
            id=f"{chart.name}{suffix}",
            title=title,
            description=_description(chart, curves),
            frame=self.frame,
            series=[self._series(curve, with_bands) for curve in ordered],
            x_ticks=self._x_ticks(),
            y_ticks=self._y_ticks(),
        )

    def _series(self, curve: Curve, with_bands: bool) -> Series:
        number = self.chart.curves.index(curve)
        style = f"c{number % COLOURS} d{number % DASHES}"
        if curve.name == self.baseline and self.chart.is_joined:
            style = "baseline"
        if number % (2 * len(_SHAPES)) >= len(_SHAPES):
            style += " open"
        ordered = sorted(curve.points, key=lambda point: self.places.index(point.x))
        at = [(self.x(point.x), point) for point in ordered]
        ends = [(x, self.y(one.cell.low), self.y(one.cell.high)) for x, one in at]
        is_line = self.chart.is_joined and len(at) > 1
        outline = [(x, high) for x, _, high in ends] + [(x, low) for x, low, _ in reversed(ends)]
        return Series(
            name=curve.name,
            style=style,
            shape=_SHAPES[number % len(_SHAPES)],
            marks=[(x, self.y(point.cell.value)) for x, point in at],
            bars=[] if is_line else ends,
            line=_points([(x, self.y(one.cell.value)) for x, one in at]) if is_line else "",
            band=_points(outline) if is_line and with_bands else "",
        )

    def _x_ticks(self) -> list[tuple[float, str]]:
        """The chart's own places where it has few, else round numbers; none over another."""
        places, chart, frame = self.places, self.chart, self.frame
        numbers = _numbers(places)
        if frame is SMALL:  # the large plot beside it says the rest
            places = [places[0], places[len(places) // 2], places[-1]] if numbers else []
        words = list(map(format_x, places))
        if numbers and not chart.is_log and (not chart.is_joined or len(places) > 10):
            low, high = min(numbers), max(numbers)
            decimals = max(three_digits(high - low) - 1, 0) if high > low else 2
            places = [tick for tick in nice_ticks(low, high) if low <= tick <= high]
            words = [f"{tick:.{decimals}f}" for tick in places]
        elif not numbers and places:
            room = (frame.right - frame.left) / 100 * frame.narrow / len(places)
            words = [_fitted(word, room - 0.4) for word in words]
        ticks = [(self.x(place), word) for place, word in zip(places, words, strict=True)]
        kept: list[tuple[float, str]] = []
        for tick in [*ticks[-1:], *ticks[:-1]]:  # the last is kept in any case
            if all(self._apart(tick, other) for other in kept):
                kept.append(tick)
        return sorted(kept)

    def _apart(self, one: tuple[float, str], other: tuple[float, str]) -> bool:
        room = abs(one[0] - other[0]) / 100 * self.frame.narrow
        return room > (_width(one[1]) + _width(other[1])) / 2 + 0.3

    def _y_ticks(self) -> list[tuple[float, str]]:
        values = self.y_values
        ticks = list(zip(map(self.y, values), format_ticks(values), strict=True))
        return ticks if self.frame is WHOLE else [ticks[0], ticks[-1]]


def _x_scale(chart: Chart, places: Sequence[float | str]) -> Callable[[float | str], float]:
    """A place on the x axis -> its share of the way, 0 to 1."""
    numbers = _numbers(places)
    if not numbers:  # words stand in the middle of equal parts
        return lambda place: (places.index(place) + 0.5) / len(places)
    is_log = chart.is_log and min(numbers) > 0
    known = {place: math.log10(place) if is_log else place for place in numbers}
    low, high = min(known.values()), max(known.values())
    if not chart.is_joined:  # points keep off the y axis
        margin = 0.06 * (high - low)
        low, high = low - margin, high + margin

    def share(place: float | str) -> float:
        assert not isinstance(place, str)
        value = math.log10(place) if is_log else place
        return (value - low) / (high - low) if high > low else 0.5

    return share


def _numbers(places: Sequence[float | str]) -> list[float]:
    """The places of an axis of numbers; none where any is a word."""
    numbers: list[float] = [place for place in places if not isinstance(place, str)]
    return numbers if len(numbers) == len(places) else []


def _width(label: str) -> float:
    """About the width of a tick's label, in em."""
    return sum(0.32 if character in " .,-" else 0.63 for character in label)


def _fitted(label: str, room: float) -> str:
    """A label cut to so many em, but to no less than four characters."""
    length = len(label)
    while _width(label[:length]) > room and length > 4:
        length -= 1
    return shortened(label, length)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _description(chart: Chart, curves: Sequence[Curve]) -> str:
    """The numbers in words, for screen readers; the table has their intervals."""
    lines = []
    for curve in curves:
        points = [
            f"{format_number(point.cell.value, point.cell.unit)} at {format_x(point.x)}"
            for point in curve.points
        ]
        lines.append(f"{curve.name}: {', '.join(points)}")
    return f"{chart.y_title} by {chart.x_title}. " + "; ".join(lines)
