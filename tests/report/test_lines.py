"""Charts as tables and plots: places, ticks and labels."""

import csv
import io
import itertools

import pytest
from report_by_hand import report_of

from eval.report.charts import chart_table
from eval.report.data import csv_text
from eval.report.lines import SMALL, WHOLE, view_of
from eval.report.markdown import markdown
from eval.report.types import Cell, Chart, Curve, Point

RATES = [0, 0.1, 0.2, 0.4, 0.6, 0.8, 1]


def curve(name, places=RATES, low=0.5, step=0.25, unit="nats"):
    cells = [
        Cell(low + step * i, low + step * i - 0.125, low + step * i + 0.25, 400, unit)
        for i in range(len(places))
    ]
    return Curve(name, [Point(x, cell) for x, cell in zip(places, cells, strict=True)])


def chart(*curves, **more):
    return Chart("gap", "gsm8k", "Loss", "rate", "NLL, nats", list(curves), **more)


def test_a_joined_chart_is_a_row_a_curve_and_a_column_an_x():
    """A curve without a place there has an empty cell; places stand in order."""
    head, body = chart_table(chart(curve("sft", [0.4, 0.8]), curve("bash", [0.1, 0.4])))
    assert head == ["stage", "0.1", "0.4", "0.8"]
    assert body == [
        ["sft", "", "0.500 [0.375, 0.750]", "0.750 [0.625, 1.000]"],
        ["bash", "0.500 [0.375, 0.750]", "0.750 [0.625, 1.000]", ""],
    ]


def test_points_that_are_not_joined_have_a_row_each():
    points = [Point(1, Cell(51, 46, 56, 400), "sft"), Point(2.125, Cell(57.5, 53, 62, 400), "bash")]
    head, body = chart_table(chart(Curve("arms", points), is_joined=False))
    assert head == ["stage", "rate", "NLL, nats"]
    assert body == [["sft", "1.00", "51.0 [46.0, 56.0]"], ["bash", "2.12", "57.5 [53.0, 62.0]"]]


def test_markdown_and_csv_hold_a_chart_under_its_benchmark():
    report = report_of()
    report.charts.append(chart(curve("sft"), note="How to read it."))
    text = markdown(report)
    assert text.index("## gsm8k") < text.index("### Loss")
    assert "NLL, nats, by rate; in brackets 95 % intervals. How to read it." in text.splitlines()
    lines = [one for one in csv.DictReader(io.StringIO(csv_text(report))) if one["chart"] == "gap"]
    assert [float(one["x"]) for one in lines] == RATES
    assert {one["stage"] for one in lines} == {"sft"} and float(lines[1]["value"]) == 0.75


def test_a_line_goes_through_the_numbers_on_both_axes():
    """Places are percent of the width and em: the first at the inset, the last at the right."""
    (series,) = view_of(chart(curve("sft", [0, 1], low=0, step=1)), "sft").plot.series
    (x, y), (x_last, y_last) = series.marks
    assert (x, x_last) == (WHOLE.left + WHOLE.inset, WHOLE.right)
    assert WHOLE.top <= y_last < y <= WHOLE.bottom
    assert series.line == f"{x:g},{y:g} {x_last:g},{y_last:g}"
    assert series.band.count(",") == 4 and series.bars == []


def test_many_curves_have_small_plots_with_the_baseline_and_bands():
    names = ["sft", *(f"arm{i}" for i in range(9))]
    view = view_of(chart(*(curve(name) for name in names)), "sft")
    assert [panel.title for panel in view.panels] == names
    assert [one.name for one in view.panels[3].series] == ["sft", "arm2"]
    assert [one.name for one in view.panels[0].series] == ["sft"]
    assert all(one.band for panel in view.panels for one in panel.series)
    assert not any(one.band for one in view.plot.series)
    assert view.plot.series[-1].name == "sft", "drawn over the others"
    assert [one.name for one in view.legend] == names
    looks = {(one.style, one.shape) for one in view.legend}
    assert len(looks) == 10, "no two alike"
    assert view_of(chart(*(curve(name) for name in names[:4])), "sft").panels == []


def test_a_logarithmic_axis_puts_doublings_apart_alike():
    places = [0.05, 0.1, 0.2, 0.4]
    (series,) = view_of(chart(curve("bash", places), is_log=True), None).plot.series
    xs = [x for x, _ in series.marks]
    steps = [after - before for before, after in itertools.pairwise(xs)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.02)


@pytest.mark.parametrize(
    "places",
    [
        [0.3],
        ["gold"],
        [0, 10],
        ["a very long name of a setting", "another very long one"],
        [0, 0.1],
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"is_log": True}, {"is_joined": False}], ids=str)
def test_any_places_have_a_plot_inside_its_frame(places, options):
    curves = [curve(str(i), places, step=0.0) for i in range(6)]
    view = view_of(chart(*curves, **options), None)
    for plot in (view.plot, *view.panels):
        for series in plot.series:
            assert all(plot.frame.left <= x <= plot.frame.right for x, _ in series.marks)
            assert all(plot.frame.top <= y <= plot.frame.bottom for _, y in series.marks)
        places_at = [x for x, _ in plot.x_ticks]
        assert places_at == sorted(set(places_at))


def test_a_chart_without_points_has_no_plot():
    assert view_of(chart(), "sft") is None and view_of(chart(Curve("sft", [])), "sft") is None


def test_ticks_of_seven_rates_stand_side_by_side_on_a_telephone():
    view = view_of(chart(*(curve(f"arm{i}") for i in range(5))), None)
    assert [label for _, label in view.plot.x_ticks] == [
        "0",
        "0.1",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
        "1",
    ]
    assert [label for _, label in view.panels[0].x_ticks] == ["0", "0.4", "1"]
    assert view.panels[0].frame is SMALL


def test_the_legend_names_every_point_that_is_not_joined_and_their_marks_differ():
    points = [Point(1 + i / 50, Cell(50, 45, 55, 400), f"stage-{i}") for i in range(24)]
    view = view_of(
        chart(Curve("bash", points[:9]), Curve("rac", points[9:]), is_joined=False), None
    )
    assert [one.name for one in view.legend] == [f"stage-{i}" for i in range(24)]
    looks = {(one.style.split()[0], "open" in one.style, one.shape) for one in view.legend}
    assert len(looks) == 24 and not any(one.line or one.band for one in view.legend)
    assert "stage-23: 50.0 at 1.46" in view.plot.description
