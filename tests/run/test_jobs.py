"""Several launches side by side: which steps each takes, on what, and what a stop leaves."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from conftest import ROOT, processes_naming, result_digests

from pipeline.data.builtin.rows import builtin_rows
from pipeline.errors import InputError
from pipeline.hardware.devices import deal_devices, visible_devices
from pipeline.hardware.threads import usable_cores
from pipeline.plan.from_model import recipe_for
from pipeline.plan.load import check_recipe, load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.shipped import read_launch
from pipeline.run.expected import format_time_left
from pipeline.run.queue import Queue, asks_in_turn, needs, urgency_of

# --- which steps ----------------------------------------------------------------------------------


def queue_of(steps, *, chains=True, in_turn=lambda step: False):
    return Queue(list(steps), urgency_of(steps, {}), chains, in_turn)


def work_through(queue, jobs):
    """Chains in the order in which they are taken, all steps being equally long."""
    running, taken, finished = [], [], set()
    while queue.waiting or running:
        while len(running) < jobs:
            left = [step for chain in running for step in chain]
            if not (chain := queue.take(left, lambda step: False)):
                break
            running.append(list(chain))
            taken.append(chain)
        for chain in running:
            assert needs(chain[0]) <= finished
        finished |= {chain.pop(0).fingerprint for chain in running}
        running = [chain for chain in running if chain]
    return taken


def demo_steps(*overrides):
    return make_plan(load_recipe("demo", overrides)).steps


@pytest.mark.parametrize("jobs", [2, 4])
def test_each_step_is_taken_once_after_what_it_needs(jobs):
    steps = demo_steps("seeds=[0, 1]")
    taken = work_through(queue_of(steps), jobs)
    names = [step.fingerprint for chain in taken for step in chain]
    assert len(names) == len(set(names)) == len(steps)


def test_chains_keep_the_starts_of_processes_few():
    """A chain goes on to the grades of a stage: one for each of eight, and what sets are compared."""
    steps = demo_steps()
    taken = work_through(queue_of(steps), jobs=2)
    alone = [step for step in steps if step.kind == "overlap"]
    assert len(taken) == 8 + len(alone) < len(steps) / 2


def test_what_most_work_waits_for_is_taken_first():
    steps = demo_steps()
    first, *_ = queue_of(steps).take([], lambda step: False)
    assert (first.stage, first.kind) == ("sft", "train")


def test_a_job_of_several_processes_takes_one_step():
    assert all(len(chain) == 1 for chain in work_through(queue_of(demo_steps(), chains=False), 2))


def test_a_judge_is_asked_by_one_job_at_a_time():
    """Its concurrency, and --max-judge-calls, are those of the run and not of each job."""
    steps = demo_steps()
    grades = [step for step in steps if step.kind == "gsm8k"]
    queue = queue_of(steps, in_turn=grades.__contains__)
    asking = [[step in grades for step in chain] for chain in work_through(queue, 3)]
    assert all(any(steps) == all(steps) for steps in asking), "after all else, or between"
    queue = queue_of(grades, in_turn=grades.__contains__)
    assert queue.take([grades[0]], lambda step: False) == []


@pytest.mark.parametrize(
    ("judge", "limited", "in_turn"),
    [
        ("openai:gpt-4.1", False, True),
        ("local:smollm2-135m-instruct", False, False),
        ("local:smollm2-135m-instruct", True, True),
        ("reference", True, False),
    ],
)
def test_which_judges_are_asked_in_turn(judge, limited, in_turn):
    model, given = "smollm2-135m-instruct", {"data": "builtin:posts", "judge": judge}
    raw = recipe_for(model, ["tldr"], limit=None, task=None, judge_url=None, **given)
    steps = make_plan(check_recipe(raw, [], name="judged")).steps
    asked = [step.kind for step in steps if asks_in_turn(step, limited=limited)]
    assert asked == (["tldr"] if in_turn else [])


def test_jobs_divide_the_time_left_but_no_chain_of_steps():
    """30 steps of a minute each; RAC and DPO on it wait for 7 of them in a row."""
    steps = demo_steps()
    seconds = {step.fingerprint: 60.0 for step in steps}
    left = [format_time_left(steps, seconds, jobs) for jobs in (1, 2, 9)]
    assert left == [", about 30 min 00 s", ", about 15 min 00 s", ", about 7 min 00 s"]


def test_a_step_that_another_run_works_on_is_left_to_it():
    steps = demo_steps()
    queue = queue_of(steps)
    chain = queue.take([], lambda step: step.kind == "train")
    assert chain and chain[0].kind == "overlap"


# --- on what --------------------------------------------------------------------------------------


def test_more_jobs_than_cores_are_refused_with_a_number_that_works():
    cores = usable_cores()
    launch = replace(read_launch("cpu_ddp"), processes=cores)
    with pytest.raises(InputError, match=rf"takes {2 * cores} cores \({cores} a job\).*--jobs 1"):
        deal_devices(launch, 2)
    assert deal_devices(read_launch("cpu"), 1) == [()]
    # Each launch of several processes finds a port of its own.
    assert deal_devices(launch, 1) == [("--main_process_port", "0")]


@pytest.mark.launches
def test_gpus_are_dealt_out_by_the_ids_that_are_visible(tmp_path, monkeypatch):
    """With a package torch that counts four of them."""
    (tmp_path / "torch.py").write_text("class accelerator:\n    device_count = lambda: 4\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    single = read_launch("single_gpu")
    assert visible_devices(single) == ["0", "1", "2", "3"]
    some = tmp_path / "some.yaml"
    some.write_text(f"{single.path.read_text()}gpu_ids: 1,3\n")
    assert visible_devices(read_launch(str(some))) == ["1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    two = replace(read_launch("ddp"), processes=2)
    port = ("--main_process_port", "0")
    assert deal_devices(two, 2) == [("--gpu_ids", "4,5", *port), ("--gpu_ids", "6,7", *port)]
    assert deal_devices(single, 2) == [("--gpu_ids", "4"), ("--gpu_ids", "5")]
    with pytest.raises(InputError, match=r"takes 6 GPUs \(2 a job\), and 4 .*--jobs 2"):
        deal_devices(two, 3)


# --- real runs ------------------------------------------------------------------------------------


def test_jobs_make_what_one_makes_bit_for_bit(
    bashrac, recipe_dict, write_recipe, tmp_path, run_steps_here
):
    recipe_dict["stages"] = {name: recipe_dict["stages"][name] for name in ("sft", "sft-dpo")}
    path = write_recipe(recipe_dict)
    done = bashrac("run", path, "--jobs", "2", "--runs", "jobs")
    assert done.returncode == 0, done.stdout + done.stderr
    plan, runs = run_steps_here(path)
    made = result_digests(tmp_path / "jobs")
    assert made == result_digests(runs)
    assert len({name.partition("/")[0] for name in made}) == len(plan.steps)
    logs = "".join(log.read_text() for log in tmp_path.glob("jobs/tiny/logs/*.log"))
    assert logs.count("$ accelerate launch") == 3, "what sets share, sft and its DPO, sft's answers"
    assert done.stdout.count(": started") == done.stdout.count(": done in") == len(plan.steps)


def test_after_a_failure_running_steps_are_finished_and_the_way_back_is_named_once(
    bashrac, recipe_dict, write_recipe, tmp_path
):
    """DPO's second row is bad. `long` goes on to its end meanwhile, and `endless` has no time to."""
    rows = builtin_rows("maths", "preferences", limit=2)
    del rows[1]["chosen"]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe_dict["data"]["preferences"] = {"source": str(tmp_path / "bad.jsonl")}
    recipe_dict |= {"evaluate": []}
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "dpo": {"method": "dpo", "from": "sft"},
        "long": {"method": "sft", "trainer": {"max_steps": 300}},
        "endless": {"method": "sft", "from": "long", "trainer": {"max_steps": 100_000}},
    }
    done = bashrac("run", write_recipe(recipe_dict), "--jobs", "2")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("bad.jsonl:2") == done.stderr.count("retry: bashrac run") == 1
    assert "--jobs 2" in done.stderr
    assert "what else is running ends with the step it is at" in done.stdout
    assert re.findall(r"^(\w+), train: done", done.stdout, re.MULTILINE) == ["sft", "long"]
    assert not processes_naming(str(tmp_path / "runs"))


@pytest.mark.launches
def test_ctrl_c_stops_all_jobs_and_keeps_what_they_have(recipe_dict, write_recipe, tmp_path):
    recipe_dict["trainer"] |= {"max_steps": 20000, "save_strategy": "no"}
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "evaluate": [], "seeds": [0, 1]}
    path, runs = write_recipe(recipe_dict), tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline", "run", path, "--runs", runs, "--jobs", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline, begun = time.monotonic() + 200, 0
    while begun < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
        with contextlib.suppress(ValueError, OSError):
            files = runs.glob("steps/train-*/progress.json")
            begun = sum(json.loads(file.read_text())["done"] > 0 for file in files)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGINT, stdout + stderr
    assert stdout.count("stopping; what is done is kept") == 1
    assert stderr.count("run the same command again to resume") == 1
    assert len(list(runs.glob("steps/train-*/checkpoints/checkpoint-*/trainer_state.json"))) == 2
    assert not processes_naming(str(runs))
