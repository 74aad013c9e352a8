"""keep: final: which weights are removed, and what happens when they are needed again."""

import pytest
from conftest import result_digests
from helpers import steps_of

from pipeline.plan.changes import remember
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.run.keep import drop_weights
from pipeline.steps import artifact


@pytest.fixture
def recipe(recipe_dict):
    """Two rounds, of which the second alone is changed by the second learning rate."""
    recipe_dict["stages"] = {
        "spin": {"method": "spin", "rounds": 2, "learning_rate": [0.001, 0.001]}
    }
    return recipe_dict | {"evaluate": [], "keep": "final"}


def weights(plan, runs):
    """By title of a training step, whether its weights are there."""
    return {
        step.title: (step.directory(runs) / "model" / "model.safetensors").exists()
        for step in plan.steps
        if step.kind == "train"
    }


def test_earlier_rounds_lose_their_weights_and_are_trained_again_when_they_are_read(
    recipe, write_recipe, bashrac, tmp_path
):
    path, runs = write_recipe(recipe), tmp_path / "runs"
    assert bashrac("run", path, "--runs", runs).returncode == 0
    plan = make_plan(load_recipe(path))
    assert weights(plan, runs) == {"train, round 1": False, "train, round 2": True}
    assert "6 done, 0 to run" in bashrac("plan", path, "--runs", runs).stdout
    assert bashrac("run", path, "--runs", runs).returncode == 0
    assert weights(plan, runs) == {"train, round 1": False, "train, round 2": True}

    changed = ["--set", "stages.spin.learning_rate=[0.001, 0.002]"]
    planned = bashrac("plan", path, "--runs", runs, *changed).stdout
    assert "its weights were removed (keep: final)" in planned and "4 done, 2 to run" in planned
    assert bashrac("run", path, "--runs", runs, *changed).returncode == 0
    assert bashrac("run", path, "--runs", tmp_path / "whole", *changed, "--set", "keep=all")
    last = make_plan(load_recipe(path, [changed[1]])).models["spin", 0].base
    files = [f"{last.directory(runs).name}/{name}" for name in ("model/model.safetensors",)]
    one, other = result_digests(runs), result_digests(tmp_path / "whole")
    assert [one[file] for file in files] == [other[file] for file in files]


def test_what_another_recipe_ends_with_stays(recipe, write_recipe, run_steps_here):
    short = recipe | {
        "name": "short",
        "stages": {"spin": {"method": "spin", "learning_rate": 0.001}},
    }
    plan, runs = run_steps_here(write_recipe(recipe))
    other = make_plan(load_recipe(write_recipe(short, "short.yaml")))
    first = plan.stage_steps["spin", 0][2]
    assert first.fingerprint == other.models["spin", 0].base.fingerprint
    remember(other, runs)
    drop_weights(plan, runs)
    assert weights(plan, runs) == {"train, round 1": True, "train, round 2": True}
    remember(plan, runs)
    (runs / "short" / "plan.json").unlink()
    drop_weights(plan, runs)
    assert weights(plan, runs) == {"train, round 1": False, "train, round 2": True}
    record = artifact.read_record(first.directory(runs))
    assert record["removed"] == ["model/model.safetensors"] and record["metrics"]["first_loss"]
    artifact.verify(first.directory(runs), weights=True)


def test_an_adapter_that_is_merged_for_the_next_stage_stays_and_the_merged_copy_goes(
    recipe, write_recipe, run_steps_here
):
    recipe["lora"] = {"r": 4, "target_modules": "all-linear"}
    recipe["stages"] = {
        "sft": {"method": "sft"},
        "more": {"method": "sft", "from": "sft", "merge_adapter": True, "lora": None},
    }
    plan, runs = run_steps_here(write_recipe(recipe))
    drop_weights(plan, runs)
    kept = {
        step.kind + step.stage: any((step.directory(runs) / "model").glob("*.safetensors"))
        for step in plan.steps
        if step.kind in ("train", "merge")
    }
    assert kept == {"trainsft": True, "mergemore": False, "trainmore": True}


def test_all_weights_stay_unless_asked(recipe, write_recipe, run_steps_here):
    plan, runs = run_steps_here(write_recipe(recipe | {"keep": "all"}))
    drop_weights(plan, runs)
    assert set(weights(plan, runs).values()) == {True}
    assert steps_of(plan, "spin")["train"]
