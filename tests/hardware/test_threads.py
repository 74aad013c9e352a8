"""How many threads a step computes with, where others use the machine too."""

import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from pipeline.hardware import threads
from pipeline.hardware.threads import ADAPT, Threads, threads_of_launch, threads_to_use
from pipeline.recipe.shipped import read_launch
from pipeline.run.launcher import environment


@pytest.mark.parametrize(
    ("others", "cores", "most", "expected"),
    [
        (0.0, 2, 2, 2),  # alone
        (0.3, 2, 2, 2),  # a little noise
        (0.5, 2, 2, 1),  # one program beside two threads: it gets half of a core
        (1.0, 2, 2, 1),  # the same once there is one thread
        (1.33, 2, 2, 1),  # two programs and two threads
        (2.0, 2, 2, 1),  # never none
        (10.0, 64, 64, 54),
        (0.0, 64, 4, 4),  # a container's quota, or one of several processes
        (30.0, 64, 4, 4),
        (0.0, 1, 1, 1),
    ],
)
def test_a_step_takes_the_cores_that_others_leave(others, cores, most, expected):
    assert threads_to_use(others, cores=cores, most=most) == expected


def test_a_launch_takes_the_cores_that_it_may_use():
    """Affinity, as of taskset, SLURM and containers, and not the machine's number of cores."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pipeline.run.launcher import environment\n"
        "from pipeline.recipe.shipped import read_launch\n"
        "print(environment(read_launch('cpu'))['OMP_NUM_THREADS'])"
    )
    plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**plain, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_counts(tmp_path, files, expected):
    """docker run --cpus 1.5, under cgroups of version 2 and 1."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.container_quota(tmp_path) == expected


def test_processes_of_a_launch_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    one, two = (environment(read_launch(name)) for name in ("cpu", "cpu_ddp"))
    cores = threads.usable_cores()
    assert one["OMP_NUM_THREADS"] == str(cores)
    assert two["OMP_NUM_THREADS"] == str(max(cores // 2, 1))
    assert one["GOMP_SPINCOUNT"] == "10000" and one[ADAPT] == "1"
    assert ADAPT not in two  # each would take the other for another program
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "GOMP_SPINCOUNT" not in {*environment(read_launch("cpu"))} - {*os.environ}


def test_what_the_user_sets_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    found = environment(read_launch("cpu"))
    assert found["OMP_NUM_THREADS"] == "3" and found["GOMP_SPINCOUNT"] == "7"
    assert ADAPT not in found
    monkeypatch.delenv("OMP_NUM_THREADS")
    gpu = environment(read_launch("single_gpu"))  # whose work is not the CPU's
    assert ADAPT not in gpu and "GOMP_SPINCOUNT" not in {*gpu} - {*os.environ}


def test_a_process_that_nobody_launched_adapts_nothing(monkeypatch):
    monkeypatch.delenv(ADAPT, raising=False)
    threads_of_launch.cache_clear()
    assert threads_of_launch() is None
    threads_of_launch.cache_clear()


@pytest.mark.launches
def test_threads_give_way_to_programs_that_compute(monkeypatch):
    """As many busy programs as cores leave the fair share of one thread."""
    monkeypatch.setattr(threads, "_SECONDS", 1.0)
    before = torch.get_num_threads()
    command = [sys.executable, "-c", "while True: pass"]
    cores = len(os.sched_getaffinity(0))
    running = [subprocess.Popen(command, start_new_session=True) for _ in range(cores)]
    try:
        found = Threads(cores)
        deadline = time.monotonic() + 60
        while found.count > 1 and time.monotonic() < deadline:
            torch.ones(64, 64) @ torch.ones(64, 64)
            found.adapt()
        assert found.count == 1 == torch.get_num_threads()
        assert found.used == {1, cores}
    finally:
        for one in running:
            one.kill()
            one.wait()
        torch.set_num_threads(before)
