"""The report of a plan in each of its forms, and as files below the run's folder."""

from __future__ import annotations

from pathlib import Path

from eval.report.data import csv_text, json_text
from eval.report.markdown import markdown
from eval.report.types import Report
from pipeline.plan.plan import Plan
from pipeline.steps import artifact

FORMS = ("md", "csv", "json", "html")


def report_text(report: Report, form: str, plan: Plan, runs: Path) -> str:
    """Return a report in one of `FORMS`; the page shows answers too, read from the runs folder."""
    if form == "html":
        from eval.report.page import html_page
        from eval.report.samples import collect_samples

        return html_page(report, collect_samples(plan, runs))
    return {"md": markdown, "csv": csv_text, "json": json_text}[form](report)


def write_report(report: Report, plan: Plan, runs: Path) -> str:
    """Write a report in every form; returns the tables and where the files are, for people."""
    texts = {form: report_text(report, form, plan, runs) for form in FORMS}
    folder = runs / plan.recipe.name
    for form, text in texts.items():
        with artifact.atomic_file(folder / f"report.{form}") as file:
            file.write(text + "\n")
    return f"{texts['md']}\n\nwritten to {folder}/report.md, .csv, .json, .html"
