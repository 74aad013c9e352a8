"""Experiment trackers (`report_to`): they write below the runs folder, one run per training."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext

FOLDER = "trackers"  # of the runs folder
_FOLDERS = ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_CACHE_DIR")
_STAY_HERE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}


def keep_here(step: StepContext) -> None:
    """Have trackers write below the runs folder, offline, unless the environment says otherwise."""
    for variable, value in _STAY_HERE.items():
        os.environ.setdefault(variable, value)
    shared = step.directory.parent.parent / FOLDER
    folder = shared / step.directory.name
    folder.mkdir(parents=True, exist_ok=True)
    for variable in _FOLDERS:
        if Path(os.environ.get(variable, shared)).is_relative_to(shared):
            os.environ[variable] = str(folder)
    # trackio reads this only once per process, so all steps of a process share a folder.
    os.environ.setdefault("TRACKIO_DIR", str(shared / "trackio"))


def end() -> None:
    """Finish wandb's open run, which the next training of this process would continue otherwise."""
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.finish()
