"""The report as one HTML page that loads nothing, for a colleague who has only the file.

The page holds model output, so nothing in it may act: jinja2 escapes every text, control characters
are shown as escapes, and a content security policy allows one style block, named by its hash, and
nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.report_plots import Plot, plots_of
from eval.report_samples import SampleView, StageAnswer
from eval.report_text import (
    COST_HEAD,
    benchmark_notes,
    benchmark_table,
    cost_words,
    figure_words,
    interval_note,
    number_words,
)
from eval.report_types import Report, Row
from pipeline.errors import visible

_INSIDE_A_NUMBER = re.compile(" (?=[±%])|(?<=[±,]) ")
_TONES = {
    "better": "good", "correct": "good", "win": "good",
    "worse": "bad", "wrong": "bad", "loss": "bad",
}  # fmt: skip
_ROLES = {"user": "Prompt", "system": "System message", "assistant": "Earlier answer"}
# A longer text gets a box of its own that scrolls.
_LONG_LINES, _LONG_CHARACTERS = 16, 600
_TITLE_CHARACTERS = 100


@dataclass(frozen=True)
class TableCell:
    """A cell of a table; `style` is a class of the page's style, and never all that says it."""

    text: str
    style: str = ""
    columns: int = 1


@dataclass(frozen=True)
class Table:
    """A table whose rows begin with their header; `is_numeric` aligns the rest at the right."""

    caption: str
    head: list[str]
    body: list[list[TableCell]]
    is_numeric: bool = False


@dataclass(frozen=True)
class Text:
    """A text of a prompt or an answer."""

    label: str
    text: str
    is_long: bool
    verdict: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Example:
    """A test example: its line in the list, and what it opens to."""

    title: str
    tally: str
    prompt: list[Text]
    answers: list[Text]


@dataclass(frozen=True)
class Section:
    """What the page says of one benchmark.

    Attributes:
        n: test rows, of which the examples are some.
        system: the system message that all examples begin with.
    """

    name: str
    summary: list[tuple[str, str]]
    plots: list[Plot]
    table: Table
    notes: list[str]
    n: int
    system: str = ""
    examples: list[Example] = field(default_factory=list)


def html_page(report: Report, samples: Mapping[str, Sequence[SampleView]]) -> str:
    """Return the page.

    Args:
        report: the table, from `eval.report.collect`.
        samples: benchmark -> test examples to browse, from `eval.report_samples.collect_samples`.
    """
    sections = [_section(report, name, samples.get(name, ())) for name in report.benchmarks]
    kinds = dict.fromkeys(one.kind for one in report.rounds)
    return _environment().get_template("report.html.jinja").render(
        report=report,
        facts=_facts(report),
        sections=sections,
        interval_note=interval_note(report) if report.rows else "",
        costs=_cost_table(report),
        rounds=[_rounds_table(report, kind) for kind in kinds],
    )  # fmt: skip


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


def _facts(report: Report) -> list[tuple[str, str]]:
    """What the report is of."""
    methods = {row.stage: row.method for row in report.rows}
    stages = [
        cost.stage + (f" ({methods[cost.stage]})" if cost.stage in methods else "")
        for cost in report.costs
    ]
    facts = [
        ("Model", report.model),
        ("Task", report.task),
        ("Stages", ", ".join(stages)),
        ("Seeds", ", ".join(map(str, report.seeds))),
    ]
    return facts if report.judge is None else [*facts, ("Judge", report.judge)]


def _section(report: Report, benchmark: str, samples: Sequence[SampleView]) -> Section:
    rows = [row for row in report.rows if row.benchmark == benchmark]
    return Section(
        name=benchmark,
        summary=_summary(rows, report.baseline),
        plots=plots_of(benchmark, rows, report.baseline),
        table=_benchmark_table(report, benchmark, rows),
        notes=benchmark_notes(report, benchmark),
        n=max((row.n or 0 for row in rows), default=0),
        system=(system := _shared_system(samples)),
        examples=[_example(sample, leave_out=bool(system)) for sample in samples],
    )


def _summary(rows: Sequence[Row], baseline: str | None) -> list[tuple[str, str]]:
    """The stages by how they compare, in words."""
    heads = {
        "better": f"Better than {baseline}",
        "worse": f"Worse than {baseline}",
        "noise": f"No clear difference from {baseline} (noise)",
    }
    lines = []
    for words, head in heads.items():
        named = [
            f"{row.stage}\u00a0{number_words(found.value, found.unit, signed=True)}"
            for row in rows
            if (found := row.difference) is not None and found.words == words
        ]
        lines += [(head, ", ".join(named))] if named else []
    unfinished = ", ".join(row.stage for row in rows if row.primary is None)
    return [*lines, ("Not finished", unfinished)] if unfinished else lines


def _benchmark_table(report: Report, benchmark: str, rows: Sequence[Row]) -> Table:
    head, lines = benchmark_table(report, benchmark)
    body = []
    for row, line in zip(rows, lines, strict=True):
        styles = {"outcomes": "outcomes"}
        if row.difference is not None:
            styles[f"vs {report.baseline}"] = _TONES.get(row.difference.words, "")
        words = {column: line.get(column, "") for column in head}
        words |= {column: _wrapping(words[column]) for column in head if column != "outcomes"}
        body.append([TableCell(words[column], styles.get(column, "")) for column in head])
    return Table(f"Every stage on {benchmark}", head, body)


def _wrapping(words: str) -> str:
    """A number with its interval, which a narrow table breaks around the interval only."""
    return _INSIDE_A_NUMBER.sub("\u00a0", words)


def _cost_table(report: Report) -> Table:
    body = [
        [TableCell(cost.stage), TableCell("not finished", columns=len(COST_HEAD) - 1)]
        if cost.seconds is None
        else [TableCell(cost.stage), *map(TableCell, cost_words(cost))]
        for cost in report.costs
    ]
    return Table("What each stage took", COST_HEAD, body, is_numeric=True)


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
        [TableCell(name), *(TableCell(figure_words(name, one.figures.get(name))) for one in rounds)]
        for name in names
    ]
    return Table(kind.capitalize(), head, body, is_numeric=True)


def _shared_system(samples: Sequence[SampleView]) -> str:
    """The system message all examples begin with, so that it need not stand in each."""
    found = {
        first["content"] if (first := sample.messages[0])["role"] == "system" else ""
        for sample in samples
    }
    return found.pop() if len(found) == 1 else ""


def _example(sample: SampleView, *, leave_out: bool) -> Example:
    """Lay out an example, without its first message where that is said elsewhere."""
    asked = " ".join(sample.messages[-1]["content"].split())
    is_whole = len(asked) <= _TITLE_CHARACTERS
    prompt = [
        _text(_ROLES.get(message["role"], message["role"].capitalize()), message["content"])
        for message in sample.messages[leave_out:]
    ]
    return Example(
        title=f"Row {sample.id + 1}: "
        + (asked if is_whole else asked[: _TITLE_CHARACTERS - 1].rstrip() + "…"),
        tally=_tally(sample.answers),
        prompt=[*prompt, _text("Reference", sample.reference)],
        answers=[_answer(stage, answer) for stage, answer in sample.answers.items()],
    )


def _tally(answers: Mapping[str, StageAnswer]) -> str:
    """Such as '2 correct, 6 wrong'; nothing where verdicts are numbers, hardly two alike."""
    counts = Counter(_outcome(answer.verdict) for answer in answers.values())
    if len(counts) > 3:
        return ""
    good_first = sorted(counts, key=lambda outcome: _TONES.get(outcome) != "good")
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in good_first)


def _outcome(verdict: str) -> str:
    """The verdict without its probability or reason: 'win (0.73)' is a win."""
    return re.split(r" \(|:", verdict, maxsplit=1)[0]


def _answer(stage: str, answer: StageAnswer) -> Text:
    cut = ", cut off at the token limit" if answer.cut_off else ""
    tone = _TONES.get(_outcome(answer.verdict), "")
    return _text(stage, answer.answer, verdict=answer.verdict + cut, tone=tone)


def _text(label: str, text: str, *, verdict: str = "", tone: str = "") -> Text:
    is_long = len(text) > _LONG_CHARACTERS or text.count("\n") >= _LONG_LINES
    return Text(label, text, is_long, verdict, tone)
