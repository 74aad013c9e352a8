"""Which devices each of several jobs is given that run side by side on one machine."""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.errors import InputError
from pipeline.hardware.threads import usable_cores
from pipeline.recipe.shipped import Launch
from pipeline.recipe.strict_yaml import read_yaml_file

# What hides devices from a process: the names that `accelerate launch --gpu_ids` sets.
_VISIBLE = (
    "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "MLU_VISIBLE_DEVICES", "SDAA_VISIBLE_DEVICES",
    "MUSA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "HABANA_VISIBLE_MODULES",
    "NEURON_RT_VISIBLE_CORES",
)  # fmt: skip
_COUNT = "import torch; print(torch.accelerator.device_count())"


def deal_devices(launch: Launch, jobs: int, *, elsewhere: bool = False) -> list[tuple[str, ...]]:
    """Options of `accelerate launch` for each job: a device for each process, a port of its own.

    On a CPU every job computes with its part of the cores (`pipeline.run.launcher.environment`).

    Args:
        launch: of each job.
        jobs: how many run at a time.
        elsewhere: whether a scheduler starts them, which sees to devices.

    Raises:
        InputError: when there are too few devices, or cores.
    """
    each = launch.processes
    # Any that is free; processes of several machines meet where the config or a script says.
    port = ("--main_process_port", "0") if each > 1 and launch.machines == 1 else ()
    if launch.use_cpu and not elsewhere:
        _check(jobs, each, usable_cores(), "core", launch)
    if launch.use_cpu or elsewhere:
        return [port] * jobs
    if not (ids := visible_devices(launch)):
        raise InputError("the launch config asks for a GPU and there is none; use --launch cpu")
    _check(jobs, each, len(ids), "GPU", launch)
    shares = [ids[job * each : (job + 1) * each] for job in range(jobs)]
    return [("--gpu_ids", ",".join(share), *port) for share in shares]


def _check(jobs: int, each: int, there: int, device: str, launch: Launch) -> None:
    if jobs * each > there:
        of_each = f" ({each} a job)" if each > 1 else ""
        raise InputError(
            f"--jobs {jobs} with the launch {launch.path.stem} takes {jobs * each} {device}s"
            f"{of_each}, and {there} can be used here; give --jobs {max(there // each, 1)}"
        )


def visible_devices(launch: Launch) -> list[str]:
    """The ids of the accelerators that a launch from here may use."""
    # Asked of another process, since this one imports no torch and should hold no GPU.
    done = subprocess.run([sys.executable, "-c", _COUNT], stdout=subprocess.PIPE, text=True)
    count = int(done.stdout or 0)
    ids = str(read_yaml_file(launch.path).get("gpu_ids", "all"))
    if ids == "all":
        every = ",".join(map(str, range(count)))
        ids = next(filter(None, map(os.environ.get, _VISIBLE)), every)
    return ids.split(",")[:count]
