"""The report as Markdown that also reads well unrendered."""

from __future__ import annotations

from eval.report.charts import chart_table
from eval.report.cost_summary import chain_table, cost_notes, has_costs, own_table
from eval.report.headlines import headline_note, headline_title, headlines
from eval.report.text import (
    benchmark_notes,
    benchmark_table,
    format_figure,
    interval_note,
    one_seed_note,
    same_note,
)
from eval.report.types import Chart, Provenance, Report
from pipeline.errors import visible
from pipeline.markdown import code


def markdown(report: Report) -> str:
    """Return the report: headlines, tables with notes on each number, and how to reproduce it."""
    lines = [f"# {report.recipe}", "", *_notes(report), "", *_headlines(report)]
    for benchmark in report.benchmarks:
        lines += _benchmark(report, benchmark)
    for chart in report.charts:
        if chart.benchmark not in report.benchmarks:
            lines += _chart(chart)
    if has_costs(report):
        lines += _costs(report)
    for kind in dict.fromkeys(one.kind for one in report.rounds):
        lines += _rounds(report, kind)
    if report.made is not None:
        lines += _made(report.made)
    if report.warnings:
        warnings = report.warnings.items()
        lines += ["## Warnings", ""]
        lines += [f"- {', '.join(stages)}: {_in_a_line(warning)}" for warning, stages in warnings]
    return visible("\n".join(lines).rstrip())


def _notes(report: Report) -> list[str]:
    seeds = ", ".join(map(str, report.seeds))
    lines = [f"Model {_in_a_line(report.model)}, task {report.task}, seeds {seeds}."]
    if report.joined is not None:
        found = report.joined.fingerprints.items()
        listed = ", ".join(f"{code(digits[:16])} ({name})" for name, digits in found)
        lines.append(f"Recipe fingerprints {listed}.{same_note(report)}")
    elif report.made is not None:
        lines.append(f"Recipe fingerprint {code(report.made.fingerprint[:16])}.")
    if report.rows:
        lines.append(" ".join(filter(None, [interval_note(report), one_seed_note(report)])))
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    if report.machines:
        computed = f", computed in {report.precision}" if report.precision else ""
        lines.append(f"Made with {versions} on {'; '.join(report.machines)}{computed}.")
    return lines


def _headlines(report: Report) -> list[str]:
    """For each benchmark a list of its comparisons."""
    lines = []
    for benchmark in report.benchmarks:
        if found := [one for one in headlines(report, benchmark) if one.verdict]:
            title = ", ".join(filter(None, headline_title(report, benchmark)))
            lines += [f"**{_in_a_line(title)}**", ""]
            lines += [f"- **{one.stage}** {one.sentence}: {one.verdict}" for one in found]
            lines.append("")
    note = headline_note(report)
    return [*lines, note, ""] if note else lines


def _benchmark(report: Report, benchmark: str) -> list[str]:
    head, lines = benchmark_table(report, benchmark)
    table = _table(head, [[line.get(column, "") for column in head] for line in lines])
    found = [f"## {benchmark}", "", *table, "", *benchmark_notes(report, benchmark), ""]
    for chart in report.charts:
        found += _chart(chart) if chart.benchmark == benchmark else []
    return found


def _chart(chart: Chart) -> list[str]:
    brackets = f"; in brackets {chart.intervals}" if chart.intervals else ""
    about = f"{chart.y_title}, by {chart.x_title}{brackets}. {chart.note}"
    return [f"### {chart.title}", "", _in_a_line(about), "", *_table(*chart_table(chart)), ""]


def _costs(report: Report) -> list[str]:
    lines = ["## Cost", "", *_table(*own_table(report)), ""]
    return [*lines, *_table(*chain_table(report)), "", *cost_notes(report), ""]


def _rounds(report: Report, kind: str) -> list[str]:
    """A table of what the steps of one kind made, one row a step."""
    rounds = [one for one in report.rounds if one.kind == kind]
    names = list(dict.fromkeys(name for one in rounds for name in one.figures))
    body = []
    for one in rounds:
        round_words = one.title.partition(", ")[2]
        stage = f"{one.stage}, {round_words}" if round_words else one.stage
        body.append(
            [stage, str(one.seed), *(format_figure(name, one.figures.get(name)) for name in names)]
        )
    lines = _table(["stage", "seed", *names], body)
    return [f"## Self-generated rows: {kind}", "", *lines, ""]


def _made(made: Provenance) -> list[str]:
    lines = [f"- {code(command)}" for command in made.commands]
    if made.commits:
        lines.append(f"- bashrac at commit {', '.join(map(code, made.commits))}")
    return ["## To reproduce", "", *lines, ""] if lines else []


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
