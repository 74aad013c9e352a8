"""Layout of the dot plots: every stage's number, and its difference from the baseline.

x is in percent of the width and y in em, so that text keeps its size on any screen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.report.text import (
    describe_missing,
    format_cell,
    format_decimals,
    format_difference,
    tone_of,
)
from eval.report.types import Row

# Heights in a plot, in em: before the first stage, of a stage, and of the axis below the last.
_TOP, _LINE, _AXIS = 2.0, 3.5, 2.4
_TEXT = 1.25  # from one line of text to the next
# Margin for half a tick label at either side of a plot, in percent of the width.
_SIDE = 6.0
# The width of a plot at 360 px, of a character of a name and of a number, in em.
_PLOT_WIDTH, _NAME_CHARACTER, _NUMBER_CHARACTER = 24.0, 0.66, 0.6


@dataclass(frozen=True)
class Mark:
    """A stage in a plot.

    Attributes:
        label: its name, in lines with their heights; `words` stand beside or below it at `words_y`.
        places: low end, dot and high end of its interval in percent of the width; None is not
            finished.
        seeds: each seed's own number, where there are several; below the interval.
    """

    label: list[tuple[str, float]]
    words: str
    words_y: float
    y: float
    tone: str = ""
    places: tuple[float, float, float] | None = None
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plot:
    """A dot with its 95 % interval for each stage, and a dashed line to compare them with."""

    id: str
    title: str
    description: str
    marks: list[Mark]
    ticks: list[tuple[float, str]]
    height: float
    line: tuple[float, str] | None = None
    note: str = ""


def plots_of(benchmark: str, rows: Sequence[Row], baseline: str | None) -> list[Plot]:
    """Every stage's number, and its difference from the baseline."""
    measured = next((row for row in rows if row.primary is not None), None)
    if measured is None:
        return []
    name, unit = measured.own, measured.measures[measured.own].unit
    less = " (lower is better)" if measured.measures[name].better == "lower" else ""
    lines = [
        (row.stage, format_cell(cell, row.n, row.seeds) or describe_missing(row), "",
         cell and (cell.low, cell.value, cell.high))
        for row in rows for cell in [row.primary]
    ]  # fmt: skip
    base = next((row.primary for row in rows if row.stage == baseline), None)
    seeds = {row.stage: row.primary.per_seed for row in rows if row.primary is not None}
    plots = [
        _plot(
            f"{benchmark}-values",
            f"{name}, {unit}{less}",
            lines,
            line=None if base is None else (base.value, str(baseline)),
            seeds=seeds,
            note="Dot: the number measured. Bar: its 95 % interval."
            + (" Small dots: each seed." if any(seeds.values()) else "")
            + ("" if base is None else f" Dashed line: {baseline}."),
        )
    ]
    found = {row.stage: one for row in rows if (one := row.difference)}
    compared = [
        (stage, format_difference(one), tone_of(one.verdict) or "open",
         (one.low, one.value, one.high))
        for stage, one in found.items()
    ]  # fmt: skip
    if compared:
        seeds = {stage: one.per_seed for stage, one in found.items()}
        note = "Paired. Filled dot: the difference is significant. Open dot: it is not."
        note += " Small dots: each seed." if any(seeds.values()) else ""
        title = f"{name}, {'points' if unit == '%' else unit} over {baseline}{less}"
        plots.append(
            _plot(f"{benchmark}-differences", title, compared, line=(0, "0 = no difference"),
                  note=note, signed=True, seeds=seeds)
        )  # fmt: skip
    return plots


def _plot(
    name: str,
    title: str,
    lines: Sequence[tuple[str, str, str, tuple[float, float, float] | None]],
    *,
    line: tuple[float, str] | None,
    note: str,
    signed: bool = False,
    seeds: Mapping[str, tuple[float, ...]] | None = None,
) -> Plot:
    """Lay out a plot; a line of it is (stage, words, tone, (low, value, high))."""
    numbers = [number for *_, three in lines if three is not None for number in three]
    numbers += [] if line is None else [line[0]]
    seeds = seeds or {}
    numbers += [number for each in seeds.values() for number in each]
    ticks = nice_ticks(min(numbers), max(numbers))
    scale = (100 - 2 * _SIDE) / (ticks[-1] - ticks[0])

    def place(number: float) -> float:
        return round(_SIDE + scale * (number - ticks[0]), 2)

    marks, top = [], _TOP
    beside = all(_fits(stage, words) for stage, words, *_ in lines)
    for stage, words, tone, three in lines:
        places = three and (place(three[0]), place(three[1]), place(three[2]))
        names = [stage] if beside else _wrapped(stage)
        label = [(name, round(top + 1.1 + i * _TEXT, 2)) for i, name in enumerate(names)]
        base = label[-1][1] + (0 if beside else _TEXT)
        each = tuple(map(place, seeds.get(stage, ())))
        marks.append(Mark(label, words, round(base, 2), round(base + 0.9, 2), tone, places, each))
        top = base - 1.1 + _LINE
    return Plot(
        id=name,
        title=title,
        description="; ".join(f"{stage}: {words}" for stage, words, *_ in lines),
        marks=marks,
        ticks=list(zip(map(place, ticks), format_ticks(ticks, signed), strict=True)),
        height=round(top + _AXIS, 2),
        line=None if line is None else (place(line[0]), line[1]),
        note=note,
    )  # fmt: skip


def nice_ticks(low: float, high: float) -> list[float]:
    """Return round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    high = high if high > low else low + 1
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 9) for i in range(first, last + 1)]


def format_ticks(ticks: Sequence[float], signed: bool = False) -> list[str]:
    """Tick labels with as many decimals as the step between ticks needs."""
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [format_decimals(tick, decimals, signed=signed and tick != 0) for tick in ticks]


def _fits(stage: str, words: str) -> bool:
    """Whether a stage's name stands beside its words on a narrow screen."""
    return len(stage) * _NAME_CHARACTER + len(words) * _NUMBER_CHARACTER <= _PLOT_WIDTH


def _wrapped(stage: str) -> list[str]:
    """A long name in two lines, broken at a comma as between the settings of a sweep."""
    room = int(_PLOT_WIDTH / _NAME_CHARACTER)
    if len(stage) <= room:
        return [stage]
    end = stage.rfind(",", 0, room) + 1 or room
    return [stage[:end], shortened(stage[end:], room)]


def shortened(text: str, room: int) -> str:
    """A text cut to so many characters."""
    return text if len(text) <= room else text[: room - 1] + "…"
