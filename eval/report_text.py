"""The report as Markdown for people, and as CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from eval.report_types import Cell, Cost, Difference, Report, Row
from pipeline.errors import visible

COST_HEAD = ["stage", "train", "tokens trained", "padding", "tokens written"]
_COLUMNS: tuple[str, ...] = (
    "benchmark", "stage", "method", "measure", "unit", "better", "value", "low", "high", "spread",
    "n", "seeds", "difference", "difference_low", "difference_high", "difference_n", "p_value",
    "difference_seeds", "published", "outcomes",
)  # fmt: skip
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
    "gap slope": "nats that the loss of a reference token rises from no own tokens to nothing but "
    "own tokens before it; lower is better",
    "slope, fixed contexts": "the same on contexts that one stage wrote for all",
    "NLL at 0": "the loss of a reference token after reference tokens",
    "tokens changed": "those of own contexts at the highest rate that are not the reference's",
    "agrees": "tokens of a greedy answer before the first that is not the reference's",
    "agrees to the end": "greedy answers that are the reference",
}


def markdown(report: Report) -> str:
    """The tables for people, with a note on what each number is."""
    lines = [f"# {report.recipe}", "", *_notes(report), ""]
    for benchmark in report.benchmarks:
        lines += _benchmark(report, benchmark)
    if any(cost.seconds != 0 for cost in report.costs):
        lines += ["## Cost", "", *_costs(report), ""]
    for kind in dict.fromkeys(one.kind for one in report.rounds):
        lines += _figures(report, kind)
    if report.warnings:
        warnings = report.warnings.items()
        lines += ["## Warnings", ""]
        lines += [f"- {', '.join(stages)}: {_in_a_line(warning)}" for warning, stages in warnings]
    return visible("\n".join(lines).rstrip())


def _benchmark(report: Report, benchmark: str) -> list[str]:
    head, lines = benchmark_table(report, benchmark)
    table = _table(head, [[line.get(column, "") for column in head] for line in lines])
    return [f"## {benchmark}", "", *table, "", *benchmark_notes(report, benchmark), ""]


def benchmark_table(report: Report, benchmark: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of a benchmark's table, and a row's words by column."""
    rows = [row for row in report.rows if row.benchmark == benchmark]
    names = list(dict.fromkeys(name for row in rows for name in row.measures)) or ["result"]
    versus = f"vs {report.baseline}"
    compared = [versus] if any(row.difference for row in rows) else []
    published = ["published"] if any(row.published for row in rows) else []
    lines = []
    for row in rows:
        missing = "not finished" if row.n is None else "no example scored in all seeds"
        line = {"stage": row.stage, "published": row.published, names[0]: missing}
        if row.primary is not None:
            line |= {name: cell_words(cell, row.n) for name, cell in row.measures.items()}
            line |= {
                versus: difference_words(row.difference, len(report.seeds)),
                "outcomes": outcome_words(row),
            }
            line["n"] = example_words(row, len(report.seeds))
        lines.append(line)
    finished = ["n", "outcomes"] if any(row.primary for row in rows) else []
    return ["stage", names[0], *compared, *names[1:], *finished, *published], lines


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
        lines.append(_overlap_words(overlap))
    if any("*" in row.published for row in rows):
        lines.append("* a number quoted by a third party, not by the paper's own summary.")
    return lines


def _overlap_words(overlap: dict[str, int]) -> str:
    words = (
        f"Overlap with training: {overlap['items']} of {overlap['n']} test items share "
        f"{overlap['ngram']} words in a row with one of {overlap['training_rows']:,} training rows "
        f"({overlap['prompts']} in the prompt, {overlap['references']} in the reference)"
    )
    short = f"; {overlap['short']} have a text too short for that, compared whole"
    return words + (short if overlap["short"] else "") + "."


def _costs(report: Report) -> list[str]:
    return _table(COST_HEAD, [[cost.stage, *cost_words(cost)] for cost in report.costs])


def _figures(report: Report, kind: str) -> list[str]:
    """A table of what the steps of one kind made, one row a step."""
    rounds = [one for one in report.rounds if one.kind == kind]
    names = list(dict.fromkeys(name for one in rounds for name in one.figures))
    body = []
    for one in rounds:
        round_words = one.title.partition(", ")[2]
        stage = f"{one.stage}, {round_words}" if round_words else one.stage
        body.append(
            [stage, str(one.seed), *(figure_words(name, one.figures.get(name)) for name in names)]
        )
    lines = _table(["stage", "seed", *names], body)
    return [f"## Self-generated rows: {kind}", "", *lines, ""]


def _notes(report: Report) -> list[str]:
    seeds = ", ".join(map(str, report.seeds))
    lines = [f"Model {_in_a_line(report.model)}, task {report.task}, seeds {seeds}."]
    if report.rows:
        lines.append(interval_note(report))
    lines.append(
        "Cost: seconds of a stage's own training and row-writing, without evaluation; a step that "
        "stages share counts in each. Padding: its share of all positions that training read."
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    if report.machines:
        lines.append(f"Made with {versions} on {'; '.join(report.machines)}.")
    return lines


def interval_note(report: Report) -> str:
    """How intervals and differences were computed, and what the words beside them mean."""
    if len(report.seeds) == 1:
        how = "Wilson for shares of right and wrong, else a bootstrap over examples"
        p_value = ", McNemar's exact p in JSON and CSV"
    else:
        how = "two-level bootstrap over seeds and examples, after ± the standard deviation of seeds"
        p_value = ""
    note = f"In brackets: 95 % intervals ({how})."
    if report.baseline is None:
        return note
    return (
        f"{note} vs {report.baseline}: points (of a number that is no percentage its own unit) on "
        f"the same examples, paired bootstrap (10,000 resamples, 1,000 of LC win rates{p_value}); "
        "better or worse = the interval excludes 0 and p, where there is one, is below 0.05; else "
        "noise."
    )


def cell_words(cell: Cell | None, n: int | None) -> str:
    """Such as '22.0 % [15.0, 31.1]'; with several seeds '22.0 ± 1.2 % [15.0, 31.1]'.

    Where it is a mean over other than n examples, that stands there too.
    """
    if cell is None:
        return ""
    value, low, high = (number_words(one, cell.unit) for one in (cell.value, cell.low, cell.high))
    spread = "" if cell.spread is None else f" ± {number_words(cell.spread, cell.unit)}"
    others = "" if cell.n == n else f" (n {cell.n})"
    return f"{value}{spread} {cell.unit} [{low}, {high}]{others}"


def number_words(value: float, unit: str, *, signed: bool = False) -> str:
    """A number with as many decimals as its unit has."""
    return f"{value:{'+' if signed else ''}.{_DECIMALS.get(unit, 1)}f}"


def difference_words(difference: Difference | None, seeds: int = 1) -> str:
    """Such as '+11.0 [+4.0, +18.0] better'; with fewer than all seeds it says how many."""
    if difference is None:
        return ""
    value, low, high = (
        number_words(one, difference.unit, signed=True)
        for one in (difference.value, difference.low, difference.high)
    )
    some = f" ({difference.seeds} of {seeds} seeds)" if difference.seeds < seeds else ""
    return f"{value} [{low}, {high}] {difference.words}{some}"


def outcome_words(row: Row) -> str:
    """Such as '11 correct, 86 wrong, 3 unparsed': what became of every example."""
    return ", ".join(f"{number} {name}" for name, number in row.counts.items() if number)


def cost_words(cost: Cost) -> list[str]:
    """Seconds, tokens trained, padding and tokens written of a stage, as in COST_HEAD."""
    if cost.seconds is None:
        return ["not finished", "", "", ""]
    padding = "" if cost.padding is None else f"{100 * cost.padding:.1f} %"
    tokens = [count(cost.tokens_trained), padding, count(cost.tokens_generated)]
    return [f"{cost.seconds:.0f} s", *tokens]


def csv_text(report: Report) -> str:
    """One line a measure, all figures, no rounding."""
    output = io.StringIO()
    writer = csv.DictWriter(output, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_lines(report))
    return output.getvalue().rstrip("\n")


def _csv_lines(report: Report) -> Iterator[dict[str, Any]]:
    for row in report.rows:
        shared = {"benchmark": row.benchmark, "stage": row.stage, "method": row.method}
        for place, (name, cell) in enumerate(row.measures.items()):
            line = {**shared, "measure": name, "seeds": row.seeds, **asdict(cell)}
            if place == 0:
                line |= {"published": row.published, "outcomes": outcome_words(row)}
            if place == 0 and (found := row.difference) is not None:
                line |= {"difference": found.value, "p_value": found.p_value}
                line |= {"difference_low": found.low, "difference_high": found.high}
                line |= {"difference_n": found.n, "difference_seeds": found.seeds}
            yield line
    for cost in report.costs:
        figures = {"train": cost.seconds, "tokens trained": cost.tokens_trained}
        figures |= {"padding": cost.padding, "tokens written": cost.tokens_generated}
        for name, value in figures.items():
            unit = {"train": "s", "padding": "share"}.get(name, "tokens")
            yield {"stage": cost.stage, "measure": name, "unit": unit, "value": value}


def json_text(report: Report) -> str:
    """Everything, for programs."""
    text = json.dumps(asdict(report), indent=1, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()  # half characters as JSON writes them


def figure_words(name: str, value: float | None) -> str:
    """A share in percent, a count, or a loss (by its name), of what a self-generating step made."""
    if name.startswith("loss") and value is not None:
        return f"{value:.3f}"
    return f"{100 * value:.1f} %" if isinstance(value, float) else count(value)


def example_words(row: Row, seeds: int) -> str:
    """The number of examples, and of seeds where some are still to come."""
    return count(row.n) + (f" ({row.seeds} of {seeds} seeds)" if row.seeds < seeds else "")


def count(value: int | None) -> str:
    """A whole number for people."""
    return "" if value is None else f"{value:,}"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    head, *body = [[_in_a_cell(cell) for cell in line] for line in [head, *body]]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]


def _in_a_cell(text: str) -> str:
    return _in_a_line(text).replace("|", "\\|")


def _in_a_line(text: str) -> str:
    return " ".join(text.split())
