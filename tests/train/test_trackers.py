"""Trackers write below the runs folder and send nothing. Each is tried where it is installed."""

import os
import sqlite3

import pytest

from pipeline.extras import missing
from pipeline.recipe.trl_fields import problem_with
from pipeline.recipe.trl_rules import NEUTRAL, TRACKERS

# Tracker -> what it writes for each of two training steps, and how often.
WRITTEN = {
    "tensorboard": ("train-*/events.out.*", 2),
    "trackio": ("trackio/huggingface.db", 1),
    "wandb": ("train-*/wandb/offline-run-*", 2),
}
needs = {
    name: pytest.mark.skipif(missing(name) is not None, reason=f"pip install {name}")
    for name in TRACKERS
}


@pytest.mark.parametrize("tracker", [pytest.param(one, marks=needs[one]) for one in TRACKERS])
def test_a_tracker_writes_each_step_below_the_runs_folder_and_nowhere_else(
    recipe_dict, write_recipe, bashrac, tmp_path, tracker
):
    """Both steps run in one process, where a tracker may still have the first one's run open."""
    recipe_dict |= {"stages": {"spin": {"method": "spin", "rounds": 2}}, "evaluate": []}
    home = tmp_path / "home"
    variables = (
        "TRACKIO_DIR",
        "WANDB_DIR",
        "WANDB_MODE",
        "TENSORBOARD_LOGGING_DIR",
        "WANDB_CACHE_DIR",
    )
    assert not set(variables) & set(os.environ), "they go first, and would hide what is tested"
    path = write_recipe(recipe_dict)
    env = {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = bashrac("run", path, "--set", f"trainer.report_to=[{tracker}]", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    pattern, count = WRITTEN[tracker]
    trackers = tmp_path / "runs/trackers"
    assert len(list(trackers.glob(pattern))) == count, sorted(trackers.rglob("*"))
    assert not home.exists()
    if tracker == "trackio":
        with sqlite3.connect(trackers / "trackio/huggingface.db") as base:
            runs = base.execute("select distinct run_name from metrics").fetchall()
        assert len(runs) == 2 and all(name.startswith("train-") for (name,) in runs)
    plan = bashrac("plan", path, env=env).stdout
    assert "6 steps: 6 done" in plan, "a tracker decides no result"


def test_a_recipe_cannot_send_what_a_tracker_holds():
    """`trackio_space_id` would make a page on the hub of it."""
    for option in ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"):
        assert "TRACKIO_SPACE_ID" in problem_with("trl.SFTConfig", option, "me/space")
        assert option not in NEUTRAL
