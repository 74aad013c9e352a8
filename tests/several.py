"""One recipe as one process makes it, for what several processes make to be compared with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.steps import artifact

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # where accelerate is
}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with a recipe of SFT, BASH and DPO."""
    from conftest import save_tiny_model, tiny_recipe

    place = tmp_path_factory.mktemp("several")
    recipe = tiny_recipe(save_tiny_model(place / "tiny")) | {"name": "several"}
    recipe["trainer"] |= {"max_steps": 4, "logging_steps": 1}
    for role, limit in (("train", 8), ("test", 6), ("preferences", 8)):
        recipe["data"][role]["limit"] = limit
    del recipe["stages"]["sft-dpo"]
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return place


@pytest.fixture(scope="session")
def alone(place):
    """The steps of the recipe as one process makes them."""
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.steps.context import write_spec

    plan = make_plan(load_recipe(place / "recipe.yaml"))
    runs = place / "alone"
    specs = [write_spec(step, runs, processes=1, use_cpu=True) for step in plan.steps]
    done = command(place, "step", *map(str, specs))
    assert done.returncode == 0, done.stdout + done.stderr
    return results(runs)


def command(place, *arguments, **options):
    """A bashrac command, run to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "pipeline", *arguments],
        cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=500, **options,
    )  # fmt: skip


def results(runs):
    """Step folder's name -> its record and folder."""
    files = sorted(runs.glob("steps/*/record.json"))
    return {file.parent.name: (artifact.read_json(file), file.parent) for file in files}


def losses(directory):
    history = json.loads((directory / "history.json").read_text())
    return [entry["loss"] for entry in history if "loss" in entry]


def check_same(alone, several, processes=2):
    """Rows and answers byte for byte, losses to float tolerance, models that load and agree."""
    from pipeline.models.load import load_model

    assert several and several.keys() <= alone.keys()
    for name, (record, directory) in several.items():
        (before, first) = alone[name]
        assert (record["processes"], before["processes"]) == (processes, 1)
        rows = [file.name for file in first.glob("*.jsonl")]
        assert rows or name.startswith(("train-", "overlap-", "gsm8k-"))
        for file in rows:
            assert (directory / file).read_bytes() == (first / file).read_bytes(), (name, file)
        if (first / "result.json").exists():
            assert (directory / "result.json").read_bytes() == (first / "result.json").read_bytes()
        if name.startswith("train-"):
            assert losses(directory) == pytest.approx(losses(first), rel=1e-3)
            old, new = (load_model(str(folder)).state_dict() for folder in (first, directory))
            assert old.keys() == new.keys()
            for key, weight in old.items():
                assert (weight - new[key]).abs().max() < 2e-3, key
        if shares := record["metrics"].get("rows_of_each_process"):
            made = sum(len((directory / file).read_bytes().splitlines()) for file in rows)
            assert len(shares) == processes and min(shares) > 0 and sum(shares) >= made
