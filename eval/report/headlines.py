"""Headlines: for each stage a sentence on its difference from the baseline."""

from __future__ import annotations

from collections.abc import Iterator
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


def headline_title(report: Report, benchmark: str) -> str:
    """The benchmark, its primary measure, and the baseline's number."""
    rows = {row.stage: row for row in report.rows if row.benchmark == benchmark}
    name = next((row.own for row in rows.values() if row.own), "")
    title = f"{benchmark}, {name}" if name else benchmark
    base = rows.get(report.baseline or "")
    if base is None:
        return title
    words = (
        format_cell(base.primary, base.n, base.seeds) if base.primary else describe_missing(base)
    )
    return f"{title}: {base.stage} {words}"


def headlines(report: Report, benchmark: str) -> Iterator[Headline]:
    """A sentence for every stage but the baseline."""
    for row in report.rows:
        if row.benchmark != benchmark or row.stage == report.baseline:
            continue
        if row.difference is not None and report.baseline is not None:
            sentence = _compared(row.difference, report.baseline)
            tone = tone_of(row.difference.verdict)
            yield Headline(row.stage, sentence, _verdict(row.difference), tone)
        else:
            yield Headline(row.stage, _alone(row, report.baseline))


def _compared(found: Difference, baseline: str) -> str:
    """Such as '+3.1 points over sft, 95 % interval 0.4 to 5.8, paired, n = 400, 3 seeds'."""
    value = format_number(found.value, found.unit, signed=True)
    low, high = (format_number(one, found.unit) for one in (found.low, found.high))
    over = "over" if found.value >= 0 else "against"
    seeds = "1 seed" if found.seeds == 1 else f"{found.seeds} seeds"
    return (
        f"{value} {_unit(found)} {over} {baseline}, 95 % interval {low} to {high}, paired, "
        f"n = {found.n:,}, {seeds}"
    )


def _verdict(found: Difference) -> str:
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    if found.verdict == NOT_SIGNIFICANT:
        least = f"{format_number(found.detectable or 0.0, found.unit)} {_unit(found)}"
        return f"{found.verdict} ({p}; a true difference of {least} would be found 4 times in 5)"
    direction = ", lower is better" if found.better == "lower" else ""
    return f"{found.verdict} ({p}{direction})"


def _unit(found: Difference) -> str:
    return "points" if found.unit == "%" else found.unit


def _alone(row: Row, baseline: str | None) -> str:
    if row.primary is None:
        return describe_missing(row)
    words = format_cell(row.primary, row.n, row.seeds)
    if row.is_baseline:
        return f"{words}, what others at its values are compared with"
    return words if baseline is None else f"{words}, not compared with {baseline}"


def headline_note(report: Report) -> str:
    """What the verdicts are adjusted for; '' where one stage is compared on one measure."""
    count = sum(len(row.differences) for row in report.rows)
    if count < 2:
        return ""
    at_once = max(row.difference.compared for row in report.rows if row.difference)
    return (
        f"{count} comparisons in all. On each benchmark the {at_once} of its primary measure are "
        "judged together (Holm); other measures, and one benchmark beside another, are not."
        if at_once > 1
        else f"{count} comparisons, each judged by itself."
    )
