"""Held-out losses in a report: their chart, its table, and where there are none."""

import csv
import io

import pytest

from eval.report.collect import collect
from eval.report.data import csv_text
from eval.report.markdown import markdown
from eval.report.page import html_page
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import artifact

HELD = {"source": "builtin:maths", "split": "train", "skip": 100, "limit": 5}
LOSSES = {0: [2.0, 1.5, 1.75], 1: [2.0, 1.25, 1.75]}


@pytest.fixture
def reported(recipe_dict, write_recipe, tmp_path):
    """The report of SFT and two rounds of BASH, all finished, with the losses of their seeds."""

    def report(*, seeds=(0, 1), lost=(), held=HELD):
        bash = {"method": "bash", "from": "sft", "rounds": 2}
        recipe_dict["stages"] = {"sft": {"method": "sft"}, "bash": bash}
        recipe_dict["data"]["validation"] = held
        recipe_dict["trainer"]["eval_strategy"] = "epoch"
        recipe_dict.update(evaluate=[], seeds=list(seeds))
        plan = make_plan(load_recipe(write_recipe(recipe_dict)))
        for step in plan.steps:
            metrics = {"tokens_trained": 1000}
            asked = step.runtime_options.get("held_out")
            if asked and step.stage not in lost:
                points = [
                    {"step": 2 * epoch, "epoch": epoch, "loss": loss, "tokens": 90}
                    for epoch, loss in enumerate(LOSSES[step.seed])
                ]
                metrics["held_out"] = {"curve": points}
            record = {
                "seconds": 1.0, "metrics": metrics, "device": "cpu", "host": "here", "versions": {},
                "files": {}, "neutral": step.runtime_options,
            }  # fmt: skip
            artifact.write_record(step.directory(tmp_path / "runs"), record)
        return collect(plan, tmp_path / "runs")

    return report


def test_each_training_has_a_curve_over_its_seeds(reported):
    """The mean of seeds, between the least and the most; a round has a curve of its own."""
    (chart,) = (report := reported()).charts
    assert [curve.name for curve in chart.curves] == ["sft", "bash, round 1", "bash, round 2"]
    points = chart.curves[0].points
    assert [(point.x, point.cell.value) for point in points] == [(0, 2), (1, 1.375), (2, 1.75)]
    assert (points[1].cell.low, points[1].cell.high, points[1].cell.seeds) == (1.25, 1.5, 2)
    text = markdown(report)
    assert "| stage         | first" in text and "in brackets the least and the most" in text
    assert "| 1.375 [1.250, 1.500] (epoch 1, step 2) | 1.750 [1.750, 1.750]" in text
    lines = [one for one in csv.DictReader(io.StringIO(csv_text(report))) if one["chart"]]
    assert {one["chart"] for one in lines} == {"held-out-loss"} and len(lines) == 9
    page = html_page(report, {})
    assert "Loss on held-out rows while training" in page and page.count("<polyline") == 3
    assert report.warnings == {}


def test_one_seed_has_no_brackets(reported):
    text = markdown(reported(seeds=(0,)))
    assert "| 2.000 (epoch 0, step 0) | 1.500 (epoch 1, step 2) | 1.750 (epoch 2, step 4)" in text
    assert "in brackets" not in text.split("### Loss on held-out rows")[1]


def test_a_finished_training_without_losses_is_named(reported):
    report = reported(lost=["bash"])
    (warning,) = report.warnings
    assert warning.startswith("no held-out loss recorded") and report.warnings[warning] == ["bash"]
    assert [curve.name for curve in report.charts[0].curves] == ["sft"]


def test_losses_on_other_rows_than_the_recipe_names_are_not_shown(reported, tmp_path):
    reported()
    plan = make_plan(load_recipe(tmp_path / "recipe.yaml", ["data.validation.skip=200"]))
    report = collect(plan, tmp_path / "runs")
    assert report.charts == [] and list(report.warnings.values()) == [["sft", "bash"]]
    unasked = make_plan(load_recipe(tmp_path / "recipe.yaml", ['trainer.eval_strategy="no"']))
    report = collect(unasked, tmp_path / "runs")
    assert report.charts == [] and report.warnings == {}
