"""Trackers write below the runs folder and send nothing. Each is tried where it is installed."""

import os
from importlib.util import find_spec

import pytest

from pipeline.option_names import NEUTRAL, TRACKERS
from pipeline.options import problem_with

WRITTEN = {"tensorboard": "events.out.*", "trackio": "huggingface.db", "wandb": "wandb/offline-*"}
needs = {
    name: pytest.mark.skipif(find_spec(name) is None, reason=f"pip install {name}")
    for name in TRACKERS
}


@pytest.mark.parametrize("tracker", [pytest.param(one, marks=needs[one]) for one in TRACKERS])
@pytest.mark.filterwarnings("ignore")  # the trackers' own
def test_a_tracker_writes_below_the_runs_folder_and_sends_nothing(
    recipe_dict, write_recipe, run_steps_here, tmp_path, monkeypatch, tracker
):
    for variable in ("TENSORBOARD_LOGGING_DIR", "TRACKIO_DIR", "WANDB_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(variable, "")  # so that it is put back afterwards
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "evaluate": []}
    plan, runs = run_steps_here(write_recipe(recipe_dict), f"trainer.report_to=[{tracker}]")
    (step,) = plan.steps
    folder = runs / "trackers" / step.directory(runs).name
    assert list(folder.glob(WRITTEN[tracker])), sorted(folder.rglob("*"))
    assert os.environ["WANDB_MODE"] == "offline"
    assert not (tmp_path / "home").exists()
    assert (
        plan.steps[0].fingerprint
        == run_steps_here(write_recipe(recipe_dict))[0].steps[0].fingerprint
    )


def test_a_recipe_cannot_send_what_a_tracker_holds():
    """`trackio_space_id` would make a page on the hub of it."""
    for option in ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"):
        assert "in the environment" in problem_with("trl.SFTConfig", option, "me/space")
        assert option not in NEUTRAL
