"""The same recipe and seed on the same machine gives the same rows, weights, grades and report."""

import json

from conftest import result_digests

from pipeline.load import load_recipe
from pipeline.plan import make_plan
from pipeline.step import write_spec


def test_two_runs_of_a_recipe_agree_to_the_last_bit(
    bashrac, recipe_dict, write_recipe, tmp_path, injected
):
    """Every method that samples: contexts, own answers, corrections, pairs."""
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
        "rac": {"method": "rac", "from": "sft"},
        "spin": {"method": "spin", "from": "sft"},
    }
    path = write_recipe(recipe_dict)
    plan = make_plan(load_recipe(path))
    reports = []
    for name in ("first", "second"):
        runs = tmp_path / name
        specs = [write_spec(step, runs, processes=1, use_cpu=True) for step in plan.steps]
        done = bashrac("step", *specs)
        assert done.returncode == 0, done.stdout + done.stderr
        said = bashrac("report", path, "--runs", runs, "--format", "json").stdout
        reports.append(json.loads(said))
        for cost in reports[-1]["costs"]:
            assert cost.pop("seconds") > 0  # the only figures that may differ
    first, second = (result_digests(tmp_path / name) for name in ("first", "second"))
    assert len(first) > 30 and first == second
    assert reports[0] == reports[1]
    injected("the same recipe twice", "sft, bash, rac and spin, in two processes", 1,
             f"{len(first)} files of rows, weights and grades bit for bit the same; so is the report")  # fmt: skip
