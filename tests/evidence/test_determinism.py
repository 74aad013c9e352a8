"""The same recipe and seed on the same machine gives the same rows, weights, grades and report."""

import json

from conftest import result_digests

from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps.context import write_spec


def without_times(report):
    """A report less its times and memory, the only figures that may differ."""
    assert report.pop("bill")["training"]["seconds"] > 0
    report["charts"] = [chart for chart in report["charts"] if not chart["name"].endswith("-cost")]
    for cost in report["costs"]:
        assert cost.pop("seconds") > 0 and cost.pop("times") > 0 and cost.pop("peak_memory") > 0
        assert cost["chain"].pop("seconds") > 0 and cost["chain"].pop("device_seconds") > 0
    for step in report["made"]["steps"]:
        assert step.pop("seconds") > 0
    return report


def test_two_runs_of_a_recipe_agree_to_the_last_bit(
    bashrac, recipe_dict, write_recipe, tmp_path, injected
):
    """Every method that samples: contexts, own answers, corrections, pairs.

    In one process for all stages, and in one that ends within `bash` and another: nothing of a
    finished step is left in a process that decides what the next one gives.
    """
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
        "rac": {"method": "rac", "from": "sft"},
        "spin": {"method": "spin", "from": "sft"},
    }
    path = write_recipe(recipe_dict)
    plan = make_plan(load_recipe(path))
    reports = []
    middle = next(i for i, step in enumerate(plan.steps) if step.stage == "bash") + 1
    for name, parts in (
        ("first", [plan.steps]),
        ("second", [plan.steps[:middle], plan.steps[middle:]]),
    ):
        runs = tmp_path / name
        for steps in parts:
            specs = [write_spec(step, runs, processes=1, use_cpu=True) for step in steps]
            done = bashrac("step", *specs)
            assert done.returncode == 0, done.stdout + done.stderr
        said = bashrac("report", path, "--runs", runs, "--format", "json").stdout
        reports.append(without_times(json.loads(said)))
    first, second = (result_digests(tmp_path / name) for name in ("first", "second"))
    assert len(first) > 30 and first == second
    assert reports[0] == reports[1]
    injected("the same recipe twice", "sft, bash, rac and spin, in one process and in two", 1,
             f"{len(first)} files of rows, weights and grades bit for bit the same; so is the report")  # fmt: skip
