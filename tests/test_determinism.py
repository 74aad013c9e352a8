"""The same recipe and seed on the same machine gives the same rows, weights, grades and report."""

import json


def _results(runs):
    found = {}
    for file in sorted(runs.glob("steps/*/record.json")):
        record = json.loads(file.read_text())
        for name, known in record["files"].items():
            if name != "history.json":  # holds speeds
                found[f"{file.parent.name}/{name}"] = known["sha256"]
    return found


def _report(folder):
    """The report but for seconds, the only figures that may differ."""
    report = json.loads((folder / "report.json").read_text())
    for cost in report["costs"]:
        cost.pop("seconds", None)
    return report


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
    for name in ("first", "second"):
        done = bashrac("run", path, "--runs", tmp_path / name)
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = (_results(tmp_path / name) for name in ("first", "second"))
    assert len(first) > 30 and first == second
    assert _report(tmp_path / "first/tiny") == _report(tmp_path / "second/tiny")
    injected("the same recipe twice", "sft, bash, rac and spin in two runs folders", 1,
             f"{len(first)} files of rows, weights and grades bit for bit the same; so is the report")  # fmt: skip
