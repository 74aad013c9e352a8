"""The report of a plan in each of its forms, and as files below the run's folder."""

from __future__ import annotations

from pathlib import Path

from eval.report import collect
from eval.report_text import csv_text, json_text, markdown
from eval.report_types import Report
from pipeline import artifact
from pipeline.plan import Plan

FORMS = ("md", "csv", "json", "html")


def report_text(plan: Plan, runs: Path, form: str) -> str:
    """Return the report of what is finished in one of `FORMS`."""
    return _in_form(collect(plan, runs), form, plan, runs)


def write_report(plan: Plan, runs: Path) -> str:
    """Write the report in every form; returns the tables and where the files are, for people."""
    report = collect(plan, runs)
    texts = {form: _in_form(report, form, plan, runs) for form in FORMS}
    folder = runs / plan.recipe.name
    for form, text in texts.items():
        with artifact.whole_file(folder / f"report.{form}") as file:
            file.write(text + "\n")
    return f"{texts['md']}\n\nwritten to {folder}/report.md, .csv, .json, .html"


def _in_form(report: Report, form: str, plan: Plan, runs: Path) -> str:
    if form == "html":
        from eval.report_html import html_page
        from eval.report_samples import collect_samples

        return html_page(report, collect_samples(plan, runs))
    return {"md": markdown, "csv": csv_text, "json": json_text}[form](report)
