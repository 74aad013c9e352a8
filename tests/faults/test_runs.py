"""Kills, signals and two runs at once: real processes, real signals."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
from conftest import ROOT, processes_naming
from judge_servers import opinion


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start `bashrac run`; what still runs ends with the test."""
    running = []

    def start(path, *arguments):
        command = [sys.executable, "-m", "pipeline", "run", str(path), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _wait_for(found, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
    return value


def _training(tmp_path):
    """The folder of a training that has come past its tenth optimizer step."""
    for file in tmp_path.glob("runs/steps/train-*/progress.json"):
        try:
            if json.loads(file.read_text())["done"] >= 10:
                return file.parent
        except ValueError:
            continue
    return None


@pytest.fixture
def long_training(recipe_dict, write_recipe):
    """A recipe of one training that takes minutes and keeps no checkpoint of its own accord."""
    recipe_dict["trainer"] |= {"max_steps": 4000, "save_strategy": "no"}
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "evaluate": []}
    return write_recipe(recipe_dict)


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_stops_within_10_s_and_training_goes_on_from_there(
    start, bashrac, long_training, tmp_path, injected, sent, code
):
    process = start(long_training)
    folder = _wait_for(lambda: _training(tmp_path))
    assert (
        len(processes_naming(folder.name, working_in=tmp_path)) == 2
    )  # the launcher, and what it has launched
    process.send_signal(sent)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    took = time.monotonic() - began
    assert process.returncode == code, stderr
    assert took < 10 and "run the same command again" in stderr and "Traceback" not in stderr
    assert not processes_naming(folder.name, working_in=tmp_path)
    (state,) = folder.glob("checkpoints/checkpoint-*/trainer_state.json")
    step = json.loads(state.read_text())["global_step"]
    assert step >= 10
    assert "to run: it was stopped midway" in bashrac("plan", long_training, "--commands").stdout
    again = start(long_training)
    log = tmp_path / "runs/tiny/logs/sft-seed0.log"
    _wait_for(lambda: "resuming from" in log.read_text())
    assert f"checkpoint-{step}" in log.read_text()
    again.kill()
    injected(f"{sent.name} while training", "to the run, in a training without checkpoints", 1,
             f"exit {code} after {took:.0f} s; goes on from the step it was stopped at")  # fmt: skip


def test_a_signal_while_a_judge_thinks_is_not_waited_out(
    start, serve, recipe_dict, write_recipe, tmp_path, injected
):
    """The server takes 30 s for the fourth reply; the three before it are kept."""
    seen = []

    def answer(body):
        seen.append(body)
        time.sleep(0 if len(seen) <= 3 else 30)
        return opinion(body)

    server = serve(answer)
    recipe_dict |= {
        "task": "tldr",
        "data": {role: {"source": "builtin:posts", "limit": 4} for role in ("train", "test")},
        "stages": {"base": {"method": "base"}},
        "evaluate": ["tldr"],
        "judge": {
            "engine": "openai",
            "model": "stand-in",
            "base_url": server.url,
            "concurrency": 1,
        },
    }
    process = start(write_recipe(recipe_dict))
    _wait_for(lambda: len(seen) == 4)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    took = time.monotonic() - began
    assert process.returncode == 143 and took < 10, stderr
    (replies,) = tmp_path.glob("runs/judge/*.jsonl")
    assert len(replies.read_text().splitlines()) == 3
    injected("SIGTERM while judging", "a server on loopback that takes 30 s to reply", 1,
             f"exit 143 after {took:.0f} s; the replies that had come are kept")  # fmt: skip


def test_a_signal_while_rows_are_written_keeps_the_finished_ones(
    start, recipe_dict, write_recipe, tmp_path, injected
):
    """Well before the ten seconds are over after which rows are stored anyway."""
    recipe_dict["data"]["test"]["limit"] = 3000
    recipe_dict["generation"] |= {"max_new_tokens": 64, "batch_tokens": 8192}
    recipe_dict |= {"stages": {"base": {"method": "base"}}}
    process = start(write_recipe(recipe_dict))

    def answering():
        for file in tmp_path.glob("runs/steps/answers-*/progress.json"):
            with contextlib.suppress(ValueError, OSError):
                return json.loads(file.read_text())["done"] > 20
        return False

    _wait_for(answering)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    took = time.monotonic() - began
    assert process.returncode == 130 and took < 10, stderr
    shards = tmp_path.glob("runs/steps/answers-*/shards/*.jsonl")
    kept = sum(len(file.read_text().splitlines()) for file in shards)
    assert kept > 20
    injected("SIGINT while answers are written", "to the run, at row 20 of 3,000", 1,
             f"exit 130 after {took:.0f} s; {kept} finished rows are kept")  # fmt: skip


def test_nothing_outlives_a_run_that_is_killed(start, long_training, tmp_path, injected):
    """kill -9 of the run alone, which leaves it no time to end what it has started."""
    process = start(long_training)
    folder = _wait_for(lambda: _training(tmp_path))
    assert len(processes_naming(folder.name, working_in=tmp_path)) == 2
    process.kill()
    process.communicate()
    _wait_for(lambda: not processes_naming(folder.name, working_in=tmp_path), seconds=5)
    injected("kill -9 of the run only", "while training", 1,
             "launched processes end within 5 s; the step is free")  # fmt: skip


def test_two_runs_at_once_make_every_step_once(
    start, recipe_dict, write_recipe, tmp_path, injected
):
    recipe_dict["stages"] = {name: recipe_dict["stages"][name] for name in ("sft", "bash")}
    recipe_dict["trainer"]["max_steps"] = 30
    path = write_recipe(recipe_dict)
    pairs = [start(path), start(path)]
    said = [process.communicate(timeout=400) for process in pairs]
    assert [process.returncode for process in pairs] == [0, 0], said
    first, second = (out[out.index("# ") :] for out, _ in said)  # the report
    assert first == second
    waited = re.findall(r"waiting for process \d+ on \S+, since \S+", said[0][0] + said[1][0])
    assert waited
    records = list(tmp_path.glob("runs/steps/*/record.json"))
    log = "".join(file.read_text() for file in tmp_path.glob("runs/tiny/logs/*.log"))
    for record in records:
        if record.parent.name.startswith("train-"):
            assert json.loads(record.read_text())["metrics"]["optimizer_steps"] == 30
    assert log.count("optimizer step 30 of 30") == 2
    injected("two runs at once", "the same recipe and runs folder", 1,
             f"both exit 0 with one table; each step made once; waited {len(waited)} times, saying for whom")  # fmt: skip


def test_a_held_step_says_who_holds_it(tmp_path):
    from pipeline.errors import StepHeldError
    from pipeline.steps.lock import held, held_by

    assert held_by(tmp_path) is None
    with held(tmp_path):
        words = held_by(tmp_path)
        assert words.startswith(f"process {os.getpid()} on ")
        assert words.endswith(datetime.now().strftime(", since %H:%M")), "the time here, not UTC"
        other = subprocess.run(
            [sys.executable, "-c",
             "import sys; from pathlib import Path; from pipeline.steps.lock import held\n"
             f"with held(Path({str(tmp_path)!r})): pass"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert other.returncode == 1 and StepHeldError.__name__ in other.stderr
        assert f"process {os.getpid()} on " in other.stderr
    assert held_by(tmp_path) is None


def test_a_dead_holder_holds_nothing(tmp_path, injected):
    """kill -9 while holding: the next one takes over at once, its note notwithstanding."""
    from pipeline.steps.lock import held, held_by

    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import time; from pathlib import Path; from pipeline.steps.lock import held\n"
         f"with held(Path({str(tmp_path)!r})): time.sleep(600)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    _wait_for(lambda: (tmp_path / "holder.json").exists())
    assert f"process {holder.pid} on " in held_by(tmp_path)
    holder.kill()
    holder.wait()
    assert (tmp_path / "holder.json").exists() and held_by(tmp_path) is None
    with held(tmp_path):
        assert f"process {os.getpid()} on " in held_by(tmp_path)
    injected("a dead holder", "kill -9 of a process that holds a step", 1, "taken over at once")
