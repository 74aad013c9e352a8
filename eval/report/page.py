"""The report as one HTML page that loads nothing, for a colleague who has only the file.

The page holds model output, so nothing in it may act: jinja2 escapes every text, control characters
are shown as escapes, and a content security policy allows one style block, named by its hash, and
nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.report.charts import chart_table
from eval.report.cost_summary import chain_table, cost_notes, has_costs, own_table
from eval.report.examples import Example, example_of, shared_system
from eval.report.headlines import Headline, headline_note, headline_title, headlines
from eval.report.lines import ChartView, view_of
from eval.report.plots import Plot, plots_of
from eval.report.samples import SampleView
from eval.report.text import (
    benchmark_notes,
    benchmark_table,
    format_figure,
    interval_note,
    one_seed_note,
    same_note,
    tone_of,
    versus,
)
from eval.report.types import Chart, Report, Row
from pipeline.errors import visible

_INSIDE_A_NUMBER = re.compile(" (?=[±%])|(?<=[±,]) ")


@dataclass(frozen=True)
class TableCell:
    """A cell of a table; `style` is a class of the page's style, and never all that says it."""

    text: str
    style: str = ""
    columns: int = 1


@dataclass(frozen=True)
class Table:
    """A table whose rows begin with their header.

    Attributes:
        is_numeric: whether the rest is aligned at the right.
        wraps: whether a number may stand above its interval.
    """

    caption: str
    head: list[str]
    body: list[list[TableCell]]
    is_numeric: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Section:
    """What the page says of one benchmark.

    Attributes:
        shared: what all headlines share, beside the title.
        n: test rows, of which the examples are some.
        seed: the training seed whose answers the examples show.
        system: the system message that all examples begin with.
    """

    name: str
    title: str
    shared: str
    headlines: list[Headline]
    plots: list[Plot]
    charts: list[tuple[ChartView, Table]]
    table: Table
    notes: list[str]
    n: int
    seed: int = 0
    system: str = ""
    examples: list[Example] = field(default_factory=list)


def html_page(report: Report, samples: Mapping[str, Sequence[SampleView]]) -> str:
    """Return the page.

    Args:
        report: the table, from `eval.report.collect`.
        samples: benchmark -> test examples to browse, from `eval.report.samples.collect_samples`.
    """
    sections = [_section(report, name, samples.get(name, ())) for name in report.benchmarks]
    kinds = dict.fromkeys(one.kind for one in report.rounds)
    others = [chart for chart in report.charts if chart.benchmark not in report.benchmarks]
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            stages=_stages(report),
            sections=sections,
            headline_note=headline_note(report),
            interval_note=interval_note(report),
            one_seed_note=one_seed_note(report),
            same_note=same_note(report).strip(),
            charts=_charts(others, report.baseline),
            costs=[
                _cost_table("What each stage took itself", *own_table(report)),
                _cost_table("With the stages it starts from", *chain_table(report)),
            ]
            if has_costs(report)
            else [],
            cost_notes=cost_notes(report),
            rounds=[_rounds_table(report, kind) for kind in kinds],
            steps=_steps_table(report),
        )
    )


def _stages(report: Report) -> dict[str, str]:
    """Every stage with its method, unless it is named so, and the stage it starts from."""
    found = {cost.stage: cost.stage for cost in report.costs}
    for row in report.rows:
        words = [row.method] if row.method != row.stage.rpartition("/")[2] else []
        words += [f"from {row.start}"] if row.start else []
        found[row.stage] = f"{row.stage} ({' '.join(words)})" if words else row.stage
    return found


def style_hash(style: str) -> str:
    """Return the hash by which a content security policy knows a style block."""
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["style_hash"] = style_hash
    return environment


def _finalize(value: Any) -> Any:
    """Called by jinja2 on every value it is about to escape; markup is the template's own."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _section(report: Report, benchmark: str, samples: Sequence[SampleView]) -> Section:
    rows = [row for row in report.rows if row.benchmark == benchmark]
    charts = [chart for chart in report.charts if chart.benchmark == benchmark]
    title, shared = headline_title(report, benchmark)
    return Section(
        name=benchmark,
        title=title,
        shared=re.sub(" (?=[=%])|(?<==) ", "\u00a0", shared),
        headlines=list(headlines(report, benchmark)),
        plots=plots_of(benchmark, rows, report.baseline),
        charts=_charts(charts, report.baseline),
        table=_benchmark_table(report, benchmark, rows),
        notes=benchmark_notes(report, benchmark),
        n=max((row.n or 0 for row in rows), default=0),
        seed=next((sample.seed for sample in samples), 0),
        system=(system := shared_system(samples)),
        examples=[example_of(sample, leave_out=bool(system)) for sample in samples],
    )


def _charts(charts: Sequence[Chart], baseline: str | None) -> list[tuple[ChartView, Table]]:
    """Charts laid out, each with its numbers as a table; those that fill the width come last."""
    found = []
    for chart in charts:
        if (view := view_of(chart, baseline)) is not None:
            head, body = chart_table(chart)
            body = [list(map(_wrapping, line)) for line in body]
            caption = f"{chart.title}: {chart.y_title}, by {chart.x_title}"
            table = _cost_table(caption, head, body)
            found.append((view, replace(table, wraps=True)))
    return sorted(found, key=lambda pair: bool(pair[0].panels))


def _benchmark_table(report: Report, benchmark: str, rows: Sequence[Row]) -> Table:
    head, lines = benchmark_table(report, benchmark)
    body = []
    for row, line in zip(rows, lines, strict=True):
        styles = {"outcomes": "outcomes"}
        for name, found in row.differences.items():
            styles[versus(report, name, row.own)] = tone_of(found.verdict)
        words = {column: line.get(column, "") for column in head}
        words |= {column: _wrapping(words[column]) for column in head if column != "outcomes"}
        body.append([TableCell(words[column], styles.get(column, "")) for column in head])
    return Table(f"Every stage on {benchmark}", head, body)


def _wrapping(words: str) -> str:
    """A number with its interval, which a narrow table breaks around the interval only."""
    return _INSIDE_A_NUMBER.sub("\u00a0", words)


def _cost_table(caption: str, head: list[str], body: list[list[str]]) -> Table:
    """A table of numbers as text, with one cell for all of a stage that has none."""
    lines = [
        [TableCell(line[0]), TableCell(line[1], columns=len(head) - 1)]
        if line[1] == "not finished"
        else list(map(TableCell, line))
        for line in body
    ]
    return Table(caption, head, lines, is_numeric=True)


def _steps_table(report: Report) -> Table:
    steps = report.made.steps if report.made else []
    body = [
        [one.name, one.folder, "not finished" if one.seconds is None else f"{one.seconds:.0f} s"]
        for one in steps
    ]
    return Table("Steps", ["step", "folder below runs/steps", "took"],
                 [list(map(TableCell, line)) for line in body])  # fmt: skip


def _rounds_table(report: Report, kind: str) -> Table:
    """What the steps of one kind made: a column a step, for the figures have long names."""
    rounds = [one for one in report.rounds if one.kind == kind]
    several = len(report.seeds) > 1
    head = ["figure"]
    for one in rounds:
        part = one.title.partition(", ")[2]  # such as "round 2"
        seed = f"seed {one.seed}" if several else ""
        head.append(", ".join(word for word in (one.stage, part, seed) if word))
    names = dict.fromkeys(name for one in rounds for name in one.figures)
    body = [
        [
            TableCell(name),
            *(TableCell(format_figure(name, one.figures.get(name))) for one in rounds),
        ]
        for name in names
    ]
    return Table(kind.capitalize(), head, body, is_numeric=True)
