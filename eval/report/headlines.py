"""Headlines: for each stage a sentence on its difference from the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eval.report.text import describe_missing, format_cell, format_number, tone_of
from eval.report.types import NOT_SIGNIFICANT, Difference, Report, Row


@dataclass(frozen=True)
class Headline:
    """A sentence on a stage.

    Attributes:
        verdict: of the difference, with a reason where it needs one; '' where nothing is compared.
        tone: 'good', 'bad' or '', as `tone_of` the verdict.
    """

    stage: str
    sentence: str
    verdict: str = ""
    tone: str = ""


def headline_title(report: Report, benchmark: str) -> tuple[str, str]:
    """The benchmark, its primary measure and the baseline's number; and what sentences share."""
    rows = [row for row in report.rows if row.benchmark == benchmark]
    name = next((row.own for row in rows if row.own), "")
    title = f"{benchmark}, {name}" if name else benchmark
    base = next((row for row in rows if row.stage == report.baseline), None)
    found = _compared(rows)
    if not found:
        return (title if base is None else f"{title}: {base.stage} {_number(base)}"), ""
    title += f": differences from {report.baseline}"
    shared = ["paired", *(words(found[0]) for words in (_n, _seeds) if _is_shared(found, words))]
    shared.append("simultaneous 95 % intervals" if found[0].compared > 1 else "95 % intervals")
    return (title if base is None else f"{title} ({_number(base)})"), ", ".join(shared)


def headlines(report: Report, benchmark: str) -> Iterator[Headline]:
    """A sentence for every stage but the baseline; `headline_title` has what they share."""
    rows = [row for row in report.rows if row.benchmark == benchmark]
    found = _compared(rows)
    own = [one for one in (_n, _seeds) if not _is_shared(found, one)]
    for row in rows:
        if row.stage == report.baseline:
            continue
        if (difference := row.difference) is not None:
            sentence = ", ".join([_interval(difference), *(words(difference) for words in own)])
            tone = tone_of(difference.verdict)
            yield Headline(row.stage, sentence, _verdict(difference), tone)
        else:
            yield Headline(row.stage, _alone(row, report.baseline))


def _compared(rows: list[Row]) -> list[Difference]:
    return [row.difference for row in rows if row.difference is not None]


def _is_shared(found: list[Difference], words: Callable[[Difference], str]) -> bool:
    return len(set(map(words, found))) == 1


def _n(found: Difference) -> str:
    return f"n = {found.n:,}"


def _seeds(found: Difference) -> str:
    return "1 seed" if found.seeds == 1 else f"{found.seeds} seeds"


def _interval(found: Difference) -> str:
    """Such as '+3.1 points [+0.4, +5.8]'."""
    value, low, high = (
        format_number(one, found.unit, signed=True) for one in (found.value, found.low, found.high)
    )
    return f"{value} {_unit(found)} [{low}, {high}]"


def _verdict(found: Difference) -> str:
    """Such as 'better (adjusted p = 0.024)'."""
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    words = [p if found.p_adjusted is None else f"adjusted {p}"]
    if found.verdict == NOT_SIGNIFICANT:
        least = format_number(found.detectable or 0.0, found.unit)
        words.append(f"detectable: {least} {_unit(found)}")
    elif found.better == "lower":
        words.append("lower is better")
    return f"{found.verdict} ({', '.join(words)})"


def _unit(found: Difference) -> str:
    return "points" if found.unit == "%" else found.unit


def _number(row: Row) -> str:
    return format_cell(row.primary, row.n, row.seeds) if row.primary else describe_missing(row)


def _alone(row: Row, baseline: str | None) -> str:
    words = _number(row)
    if row.primary is None:
        return words
    if row.is_baseline:
        return f"{words}, what others at its values are compared with"
    return words if baseline is None else f"{words}, not compared with {baseline}"


def headline_note(report: Report) -> str:
    """What the verdicts are adjusted for, and what is detectable; '' if neither needs words."""
    notes = []
    count = sum(len(row.differences) for row in report.rows)
    found = _compared(report.rows)
    at_once = max((one.compared for one in found), default=1)
    if at_once > 1:
        notes.append(
            f"{count} comparisons in all. On each benchmark the {at_once} of its primary measure "
            "are judged together; other measures, and one benchmark beside another, are not."
        )
    elif count > 1:
        notes.append(f"{count} comparisons, each judged by itself.")
    if any(one.verdict == NOT_SIGNIFICANT for one in found):
        notes.append("Detectable: a true difference of this size would be found 4 times in 5.")
    return " ".join(notes)
