"""The words of a report: numbers, tables and notes that its Markdown and its page share."""

from __future__ import annotations

from eval.report.types import Cell, Difference, Report, Row

# Decimals by unit; of any other unit one.
_DECIMALS = {"nats": 3}
# What each measure is, said below the tables it stands in.
_MEANINGS = {
    "strict": "the number after the last ####",
    "flexible": "the last number of the answer",
    "cut off": "answers that hit the token limit",
    "lm-eval strict": "the first #### number as lm-eval reads it, compared as text",
    "lm-eval flexible": "the last number as lm-eval reads it, compared as text",
    "ROUGE-L": "ROUGE: stemmed F measure with the reference",
    "LC win rate": "length-controlled",
    "win rate": "mean preference for the model's answer, a tie counting half",
    "order decides": "comparisons whose winner changes with the order of the answers",
    "label mass": "probability that the judge gives its two labels; below a half is no verdict",
    "gap slope": "of a straight line through the loss of reference tokens over the rate of own "
    "tokens before them, from 0 to 1; lower is better",
    "slope, fixed contexts": "the same on contexts that one stage wrote for all (in a sweep of "
    "that stage: at each of its points)",
    "NLL at 0": "the loss of a reference token after reference tokens",
    "tokens changed": "those of own contexts at the highest rate that are not the reference's",
    "agrees": "tokens of a greedy answer before the first that is not the reference's",
    "agrees to the end": "greedy answers that are the reference",
}


def benchmark_table(report: Report, benchmark: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of a benchmark's table, and a row's words by column."""
    rows = [row for row in report.rows if row.benchmark == benchmark]
    own = next((row.own for row in rows if row.own), "result")
    names = list(dict.fromkeys([own, *(name for row in rows for name in row.measures)]))
    compared = {name for row in rows for name in row.differences}
    columns = [
        column
        for name in names
        for column in (name, versus(report, name, own))
        if column == name or name in compared
    ]
    published = ["published"] if any(row.published for row in rows) else []
    lines = []
    for row in rows:
        line = {"stage": row.stage, "published": row.published, own: describe_missing(row)}
        if row.measures:
            line |= {
                name: format_cell(cell, row.n, row.seeds) for name, cell in row.measures.items()
            }
            line |= {
                versus(report, name, own): format_difference(one, len(report.seeds))
                for name, one in row.differences.items()
            }
            line["outcomes"] = format_outcomes(row)
            line["n"] = describe_example(row, len(report.seeds))
        lines.append(line)
    finished = ["n", "outcomes"] if any(row.measures for row in rows) else []
    return ["stage", *columns, *finished, *published], lines


def versus(report: Report, measure: str, own: str) -> str:
    """The column of differences of a measure; of the benchmark's own it need not say which."""
    return f"{'' if measure == own else f'{measure} '}vs {report.baseline}"


def describe_missing(row: Row) -> str:
    """Why a stage has no number of the benchmark's own."""
    if row.n is None:
        return "not finished"
    return f"no {row.own}" if row.measures else "no example scored in all seeds"


def benchmark_notes(report: Report, benchmark: str) -> list[str]:
    """What the numbers of one benchmark are, and what they were judged and checked with."""
    rows = [row for row in report.rows if row.benchmark == benchmark]
    names = dict.fromkeys(name for row in rows for name in row.measures)
    meanings = [f"{name}: {_MEANINGS[name]}" for name in names if name in _MEANINGS]
    lines = [f"Asked: {report.asked[benchmark]}."]
    if meanings:
        lines.append("; ".join(meanings) + "; outcomes: by the first number, over all seeds.")
    if report.judge is not None and any("win" in row.counts for row in rows):
        lines.append(f"Judge: {report.judge}.")
    if overlap := report.overlaps.get(benchmark):
        lines.append(_describe_overlap(overlap))
    if any("*" in row.published for row in rows):
        lines.append("* a number quoted by a third party, not by the paper's own summary.")
    return lines


def _describe_overlap(overlap: dict[str, int]) -> str:
    words = (
        f"Overlap with training: {overlap['items']} of {overlap['n']} test items share "
        f"{overlap['ngram']} words in a row with one of {overlap['training_rows']:,} training rows "
        f"({overlap['prompts']} in the prompt, {overlap['references']} in the reference)"
    )
    short = f"; {overlap['short']} have a text too short for that, compared whole"
    return words + (short if overlap["short"] else "") + "."


def interval_note(report: Report) -> str:
    """How intervals and differences were computed, and what the words beside them mean.

    Where several seeds are planned and one is finished, it is that one's.
    """
    if max((row.seeds for row in report.rows), default=0) <= 1:
        how = "Wilson for shares of right and wrong, else a bootstrap over examples"
        test = "McNemar's exact test for right and wrong, else a t test over examples"
    else:
        how = (
            "two-level bootstrap over seeds and examples, too narrow where few seeds differ much; "
            "after ± the standard deviation of seeds"
        )
        test = "a t test over seeds and examples, which few seeds rarely pass where they differ"
    note = f"In brackets: 95 % intervals ({how})."
    if report.baseline is None:
        return note
    return (
        f"{note} vs {report.baseline}: points, or the number's own unit where that is not %, on "
        f"the same examples, paired bootstrap (10,000 resamples, 1,000 of LC win rates); better or "
        f"worse = the interval excludes 0 and p is below 0.05 ({test}; p in JSON and CSV); else "
        "noise."
    )


def format_cell(cell: Cell | None, n: int | None, seeds: int = 1) -> str:
    """Such as '22.0 % [15.0, 31.1]'; with several seeds '22.0 ± 1.2 % [15.0, 31.1]'.

    Where it is a mean over other than n examples, or over fewer seeds, that stands there too.
    """
    if cell is None:
        return ""
    value, low, high = (format_number(one, cell.unit) for one in (cell.value, cell.low, cell.high))
    spread = "" if cell.spread is None else f" ± {format_number(cell.spread, cell.unit)}"
    others = [f"n {cell.n}"] if cell.n != n else []
    others += [f"{cell.seeds} of {seeds} seeds"] if cell.seeds < seeds else []
    more = f" ({', '.join(others)})" if others else ""
    return f"{value}{spread} {cell.unit} [{low}, {high}]{more}"


def format_number(value: float, unit: str, *, signed: bool = False) -> str:
    """A number with as many decimals as its unit has."""
    return f"{value:{'+' if signed else ''}.{_DECIMALS.get(unit, 1)}f}"


def format_difference(difference: Difference | None, seeds: int = 1) -> str:
    """Such as '+11.0 [+4.0, +18.0] better'.

    With fewer than all seeds it says how many, and where p alone makes it noise, p.
    """
    if difference is None:
        return ""
    value, low, high = (
        format_number(one, difference.unit, signed=True)
        for one in (difference.value, difference.low, difference.high)
    )
    some = f" ({difference.seeds} of {seeds} seeds)" if difference.seeds < seeds else ""
    why = f" (p {difference.p_value:.2f})" if difference.overruled_by_p else ""
    return f"{value} [{low}, {high}] {difference.words}{why}{some}"


def format_outcomes(row: Row) -> str:
    """Such as '11 correct, 86 wrong, 3 unparsed': what became of every example."""
    return ", ".join(f"{number} {name}" for name, number in row.counts.items() if number)


def format_figure(name: str, value: float | None) -> str:
    """A share in percent, a count, or a loss (by its name), of what a self-generating step made."""
    if name.startswith("loss") and value is not None:
        return f"{value:.3f}"
    return f"{100 * value:.1f} %" if isinstance(value, float) else count(value)


def describe_example(row: Row, seeds: int) -> str:
    """The number of examples, and of seeds where some are still to come."""
    return count(row.n) + (f" ({row.seeds} of {seeds} seeds)" if row.seeds < seeds else "")


def count(value: int | None) -> str:
    """A whole number for people."""
    return "" if value is None else f"{value:,}"
