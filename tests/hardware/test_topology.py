"""What a launch asks for and what accelerate makes of it, in real processes on CPUs."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from pipeline.errors import InputError
from pipeline.hardware.topology import asked_by_environment
from pipeline.recipe.shipped import FSDP2, REPLICATED


@pytest.fixture
def launched(recipe_dict, write_recipe, tmp_path):
    """`accelerate launch ... -m pipeline run RECIPE` as a user types it, in an empty folder."""
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "evaluate": []}
    recipe = write_recipe(recipe_dict)
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def launch(*options, **environment):
        return subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *options, "--dynamo_backend", "no",
             "--main_process_port", "0", "-m", "pipeline", "run", str(recipe)],
            cwd=folder, capture_output=True, text=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip

    return launch


TWO = ("--num_processes", "2", "--num_machines", "1")


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (("--multi_gpu", *TWO, "--mixed_precision", "no"), {},
         "2 processes were launched, but accelerate sees 1"),
        (("--use_fsdp", "--fsdp_version", "2", *TWO, "--mixed_precision", "no"),
         {"ACCELERATE_USE_CPU": "true"}, "requests FSDP2, but accelerate runs whole weights"),
    ],
    ids=["no GPU for two", "FSDP on CPUs"],
)  # fmt: skip
def test_processes_that_do_not_do_what_was_asked_are_stopped(launched, tmp_path, options, environment, said):  # fmt: skip
    done = launched(*options, **environment)
    assert done.returncode != 0 and said in done.stderr, done.stdout + done.stderr
    assert not list(tmp_path.glob("elsewhere/runs/steps/*/record.json"))


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, REPLICATED),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, FSDP2),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ZeRO-2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3"),
    ],
)
def test_what_a_user_launched_is_read_from_the_environment(monkeypatch, environment, kind):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert asked_by_environment() == kind


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_USE_FSDP": "true"},
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "mine.json"},
    ],
    ids=["FSDP1", "precision", "a DeepSpeed file"],
)
def test_a_launch_that_is_not_known_or_changes_results_is_refused(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError):
        asked_by_environment()
