"""Several processes: on one machine, as two machines on loopback, and through another command."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml
from conftest import processes_naming
from several import ENVIRONMENT, check_same, command, results

from pipeline.recipe.shipped import folder

SCRIPTS = folder("recipes") / "launch"
TWO_MACHINES = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "use_cpu": True,
    "mixed_precision": "no",
    "num_machines": 2,
    "num_processes": 2,
    "machine_rank": 0,
    "same_network": True,
    "main_process_ip": "127.0.0.1",
    "main_process_port": 29500,
    "rdzv_backend": "static",
}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(autouse=True)
def two_machines(place):
    """A launch config of two machines, each with one process on its CPU."""
    (place / "two_machines.yaml").write_text(yaml.safe_dump(TWO_MACHINES))


def test_two_machines_make_what_one_process_makes(place, alone):
    """two_nodes.sh, started twice on loopback: every step, in one launch."""
    environment = {
        **ENVIRONMENT,
        "ACCELERATE_USE_CPU": "true",
        "LAUNCH": "two_machines.yaml",
        "MASTER_PORT": free_port(),
    }
    script = [str(SCRIPTS / "two_nodes.sh")]
    machines = [
        subprocess.Popen(
            [*script, rank, "127.0.0.1", "recipe.yaml", "--runs", "machines"],
            cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    said = [machine.communicate(timeout=500)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "| bash-dpo" in said[0] and "| bash-dpo" not in said[1]
    made = results(place / "machines")
    assert made.keys() == alone.keys()
    check_same(alone, made)
    shares = [record["metrics"].get("rows_of_each_process") for record, _ in made.values()]
    assert len(list(filter(None, shares))) == 4, "contexts, and answers of three stages"


def test_two_processes_start_from_a_config_of_ours(place, alone):
    done = command(place, "run", "recipe.yaml", "--stage", "sft", "--launch", "cpu_ddp",
                   "--set", "evaluate=[]", "--runs", "ddp")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(alone, results(place / "ddp"))


# --- through another command ----------------------------------------------------------------------


SRUN = """#!/bin/sh
# As srun: starts a command once on each of two nodes, without its input, hands TERM on, and fails
# where one of them fails.
while [ "${1#--}" != "$1" ]; do shift 2; done
trap 'kill -TERM $first $second' TERM
SLURM_NODEID=0 "$@" < /dev/null & first=$!
SLURM_NODEID=1 "$@" < /dev/null & second=$!
code=0
for one in $first $second; do
    wait $one; status=$?
    # A wait that TERM has ended is gone on with.
    if kill -0 $one 2> /dev/null; then wait $one; status=$?; fi
    [ $status -eq 0 ] || code=$status
done
exit $code
"""
THROUGH = ("--through", "srun --nodes 2 --ntasks-per-node 1 on_node.sh")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with `srun` and `scontrol` on the path, whose two nodes are this machine."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho 127.0.0.1\necho other\n")):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    job = str(int(free_port()) % 10000)
    variables = {
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_JOB_ID": job,
        "PATH": f"{bin_folder}:{ENVIRONMENT['PATH']}",
    }
    for name, value in variables.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)


def test_steps_run_on_two_nodes_through_srun(place, alone, cluster):
    given = ("recipe.yaml", "--set", "evaluate=[]", "--launch", "two_machines.yaml",
             "--runs", "slurm")  # fmt: skip
    words = f"srun --nodes 2 --ntasks-per-node 1 {SCRIPTS / 'on_node.sh'} accelerate launch"
    plan = command(place, "plan", "--commands", *given, *THROUGH)
    assert plan.stdout.count(words) == 4
    without = command(place, "run", *given, "--stage", "sft")
    assert without.returncode == 2 and "asks for 2 machines" in without.stderr
    done = command(place, "run", *given, "--stage", "sft", *THROUGH)
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(alone, results(place / "slurm"))
    assert words in (place / "slurm/several/logs/sft-seed0.log").read_text()


def test_a_run_that_is_told_to_stop_stops_its_nodes(place, cluster, tmp_path):
    """Nothing but signals reaches them: the parent's SIGTERM goes through srun."""
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline", "run", "recipe.yaml", "--set", "evaluate=[]",
         "--launch", "two_machines.yaml", "--runs", str(runs), "--stage", "sft", *THROUGH,
         "--set", "trainer.max_steps=4000", "--set", "trainer.save_strategy='no'"],
        cwd=place, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    done = 0
    while done < 10:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
        for file in runs.glob("steps/train-*/progress.json"):
            with contextlib.suppress(ValueError, OSError):
                done = json.loads(file.read_text())["done"]
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    (state,) = runs.glob("steps/train-*/checkpoints/checkpoint-*/trainer_state.json")
    assert json.loads(state.read_text())["global_step"] >= 10
    assert not processes_naming(str(runs))


def test_a_command_that_is_not_there_is_a_sentence(place):
    done = command(place, "run", "recipe.yaml", "--through", "no-such-scheduler -N 2")
    assert done.returncode == 2
    assert "--through: no-such-scheduler does not start" in done.stderr
    assert command(place, "plan", "recipe.yaml", "--through", "srun 'open").returncode == 2
