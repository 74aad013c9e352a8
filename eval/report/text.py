"""Numbers, tables and notes as text, for Markdown, the page and model cards."""

from __future__ import annotations

from eval.report.types import Cell, Difference, Report, Row

MINUS = "\u2212"
# Decimals by unit; of any other unit one.
_DECIMALS = {"nats": 3}
_TONES = {
    "better": "good", "ahead": "good", "correct": "good", "win": "good",
    "worse": "bad", "behind": "bad", "wrong": "bad", "loss": "bad",
}  # fmt: skip
# Explained below the tables that have these columns.
_MEANINGS = {
    "strict": "the number after the last ####",
    "flexible": "the last number of the answer",
    "pass@1": "pass@k: the chance that at least one of k answers is right, by the number after the "
    "last ####",
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
    "recovery": "answers that are right in the end although some of the tokens before a cut were "
    "replaced; right at k: with k of them replaced; kept, repaired: of rows right, wrong, at 0",
    "NLL at 0": "the loss of a reference token after reference tokens",
    "tokens changed": "those of own contexts at the highest rate that are not the reference's",
    "agrees": "tokens of a greedy answer before the first that is not the reference's",
    "agrees to the end": "greedy answers that are the reference",
}

_PUBLISHED = (
    "published: by another judge with another prompt, so not comparable with the win rates here."
)
# Of benchmarks with a judge of their own.
_OFFICIAL = {
    "alpaca": " AlpacaEval 2's own is gpt-4-1106-preview, which left the API in 2026 (on 26 March "
    "or 23 October; sources disagree).",
}


def benchmark_table(report: Report, benchmark: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of a benchmark's table, and each row's cells by column."""
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
            line["n"] = format_n(row, len(report.seeds))
        lines.append(line)
    finished = ["n", "outcomes"] if any(row.measures for row in rows) else []
    return ["stage", *columns, *finished, *published], lines


def versus(report: Report, measure: str, own: str) -> str:
    """The heading of a measure's differences; the primary measure need not be named."""
    return f"{'' if measure == own else f'{measure} '}vs {report.baseline}"


def describe_missing(row: Row) -> str:
    """Why a stage lacks the primary measure."""
    if row.n is None:
        return "not finished"
    return f"no {row.own}" if row.measures else "no example scored in all seeds"


def benchmark_notes(report: Report, benchmark: str) -> list[str]:
    """What a benchmark's numbers mean, its judge, and its overlap with training rows."""
    rows = [row for row in report.rows if row.benchmark == benchmark]
    names = dict.fromkeys(name for row in rows for name in row.measures)
    meanings = [f"{name}: {_MEANINGS[name]}" for name in names if name in _MEANINGS]
    lines = [f"Evaluated on {report.asked[benchmark]}."]
    if meanings:
        lines.append("; ".join(meanings) + "; outcomes: by the first number, over all seeds.")
    if report.judge is not None and any("win" in row.counts for row in rows):
        lines.append(f"Judge: {report.judge}.")
        if any(row.published for row in rows):
            lines.append(_PUBLISHED + _OFFICIAL.get(benchmark, ""))
        if usage := report.judge_usage.get(benchmark):
            lines.append(_describe_usage(usage))
    if overlap := report.overlaps.get(benchmark):
        lines.append(_describe_overlap(overlap))
    if any("*" in row.published for row in rows):
        lines.append("* a number quoted by a third party, not by the paper's own summary.")
    return lines


def _describe_usage(usage: dict[str, float]) -> str:
    """The tokens of a benchmark's replies, as the judge's server counted them."""
    words = (
        f"The judge's replies took {usage.get('prompt_tokens', 0):,.0f} tokens to read and "
        f"{usage.get('completion_tokens', 0):,.0f} to write"
    )
    if "reasoning_tokens" in usage:
        words += f", {usage['reasoning_tokens']:,.0f} of them reasoning"
    return words + (f"; cost {usage['cost']:,.2f}." if "cost" in usage else ".")


def _describe_overlap(overlap: dict[str, int]) -> str:
    words = (
        f"Overlap with training: {overlap['items']} of {overlap['n']} test items share "
        f"{overlap['ngram']} words in a row with one of {overlap['training_rows']:,} training rows "
        f"({overlap['prompts']} in the prompt, {overlap['references']} in the reference)"
    )
    short = f"; {overlap['short']} have a text too short for that, compared whole"
    return words + (short if overlap["short"] else "") + "."


def same_note(report: Report) -> str:
    """Which stages stand for those of several recipes; '' for none."""
    same = report.joined.same if report.joined else {}
    if not same:
        return ""
    words = ", ".join(f"{stage} is {shown}" for stage, shown in same.items())
    return f" The same steps, shown once: {words}."


def interval_note(report: Report) -> str:
    """How intervals and differences were computed, for as many seeds as are finished."""
    seeds = max((row.seeds for row in report.rows), default=0)
    spread = "; after ± the standard deviation of seeds" if seeds > 1 else ""
    note = f"In brackets: 95 % intervals{spread}."
    if report.baseline is None:
        return note
    note += (
        f" vs {report.baseline}: the difference on the same examples, in points or the number's "
        "own unit."
    )
    compared = max((d.compared for row in report.rows for d in row.differences.values()), default=1)
    if compared > 1:
        note += (
            " Primary measures are compared in all stages at once: p is Holm's, and their "
            "intervals hold together."
        )
    return (
        f"{note} Better or worse: p is below 0.05, over seeds and examples." if seeds > 1 else note
    )


def one_seed_note(report: Report) -> str:
    """What one seed can and cannot say; '' where no difference is of one seed."""
    found = [one.seeds for row in report.rows for one in row.differences.values()]
    if 1 not in found:
        return ""
    return (
        "One seed compares two models, not two methods. Ahead or behind: p is below 0.05 for these "
        "two on such examples; training again with another seed may come out otherwise, so no "
        "method is called better."
    )


def format_cell(cell: Cell | None, n: int | None, seeds: int = 1) -> str:
    """Such as '22.0 % [15.0, 31.1]'; with several seeds '22.0 ± 1.2 % [15.0, 31.1]'.

    If it is a mean over other than n examples, or over fewer seeds, it says so.
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
    return format_decimals(value, _DECIMALS.get(unit, 1), signed=signed)


def format_decimals(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number for people: with a minus sign as wide as a plus, and none where it rounds to 0."""
    return f"{value:{'+' if signed else ''}z.{decimals}f}".replace("-", MINUS)


def format_difference(difference: Difference | None, seeds: int = 1) -> str:
    """Such as '+11.0 [+4.0, +18.0] better'.

    With fewer than all seeds it says how many.
    """
    if difference is None:
        return ""
    value, low, high = (
        format_number(one, difference.unit, signed=True)
        for one in (difference.value, difference.low, difference.high)
    )
    some = f" ({difference.seeds} of {seeds} seeds)" if difference.seeds < seeds else ""
    return f"{value} [{low}, {high}] {difference.verdict}{some}"


def tone_of(verdict: str) -> str:
    """The colour of a verdict on a difference or an answer: 'good', 'bad', or '' for neither."""
    return _TONES.get(verdict, "")


def format_outcomes(row: Row) -> str:
    """Such as '11 correct, 86 wrong, 3 unparsed': what became of every example."""
    return ", ".join(f"{number} {name}" for name, number in row.counts.items() if number)


def format_figure(name: str, value: float | None) -> str:
    """A figure of a row-writing step: a share in percent, a count, or a loss (by its name)."""
    if name.startswith("loss") and value is not None:
        return f"{value:.3f}"
    return f"{100 * value:.1f} %" if isinstance(value, float) else count(value)


def format_n(row: Row, seeds: int) -> str:
    """The number of examples, and of seeds if some are not finished."""
    return count(row.n) + (f" ({row.seeds} of {seeds} seeds)" if row.seeds < seeds else "")


def count(value: int | None) -> str:
    """Such as '1,234'; '' for None."""
    return "" if value is None else f"{value:,}"
