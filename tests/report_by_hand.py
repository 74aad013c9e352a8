"""A report made by hand, for the tests of its words and charts."""

from eval.report.types import Cell, Report, Row


def report_of(*differences, unit="%", **more):
    cells = {"strict": Cell(51.0, 46.1, 55.9, 400, unit, seeds=3)}
    base = Row("sft", "sft", "gsm8k", 400, 3, cells, own="strict", is_baseline=True)
    rows = [
        Row(f"arm{i}", "bash", "gsm8k", 400, 3, base.measures, found, own="strict")
        for i, difference in enumerate(differences)
        for found in [{} if difference is None else {"strict": difference}]
    ]
    return Report(
        recipe="study", task="gsm8k", model="m", seeds=[0, 1, 2], baseline="sft", judge=None,
        asked={"gsm8k": "rows"}, rows=[base, *rows], costs=[], overlaps={}, rounds=[], charts=[],
        warnings={}, versions={}, machines=[], **more,
    )  # fmt: skip
