"""`bashrac logs`, on logs as runs leave them."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture
def leave(recipe_dict, write_recipe, tmp_path):
    """Write a log, each newer than the one before; returns the recipe's path."""
    count = 0

    def leave(name, text):
        nonlocal count
        count += 1
        log = tmp_path / "runs" / "tiny" / "logs" / name
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.utime(log, (count, count))
        return write_recipe(recipe_dict)

    return leave


def numbered(count):
    return "".join(f"line {number}\n" for number in range(1, count + 1))


def test_the_end_of_the_newest_log(leave, bashrac):
    leave("sft-seed0.log", "older\n")
    path = leave("bash-seed0.log", numbered(100))
    lines = bashrac("logs", path).stdout.splitlines()
    assert lines[0] == "==> runs/tiny/logs/bash-seed0.log"
    assert lines[1:] == numbered(100).splitlines()[-40:]
    assert bashrac("logs", path, "-n", "2").stdout.splitlines()[1:] == ["line 99", "line 100"]


def test_the_log_of_a_stage_or_seed(leave, bashrac):
    leave("sft-seed0.log", "sft 0\n")
    leave("sft-seed1.log", "sft 1\n")
    leave("sft-dpo-seed0.log", "sft-dpo\n")
    path = leave("bash@beta=0.1-seed0.log", "bash\n")
    shown = lambda *more: bashrac("logs", *more).stdout.splitlines()[1:]  # noqa: E731
    assert shown(f"{path}:sft") == ["sft 1"]
    assert shown(f"{path}:sft", "--seed", "0") == ["sft 0"]
    assert shown(f"{path}:sft-dpo") == ["sft-dpo"]
    assert shown(f"{path}:bash") == shown(f"{path}:bash@beta=0.1") == ["bash"]
    assert shown(path, "--seed", "1") == ["sft 1"]


def test_what_is_not_there_is_a_sentence(leave, bashrac, write_recipe, recipe_dict):
    done = bashrac("logs", write_recipe(recipe_dict))
    assert done.returncode == 2
    assert done.stderr == "error: tiny has no log in runs/tiny/logs: it has not been run there\n"
    leave("notes.log", "of somebody else\n")
    path = leave("sft-seed0.log", "said\n")
    done = bashrac("logs", f"{path}:bash")
    assert done.returncode == 2 and "stage bash of tiny has no log in runs/tiny" in done.stderr
    done = bashrac("logs", path, "--seed", "3")
    assert done.returncode == 2 and "runs/tiny/logs for seed 3: " in done.stderr
    done = bashrac("logs", f"{path}:bsh")
    assert done.returncode == 2 and "no stage 'bsh'; did you mean bash?" in done.stderr


def test_nothing_in_a_log_acts_on_the_terminal_and_bars_are_shown_once(leave, bashrac):
    path = leave("sft-seed0.log", b" 0%\r 50%\r100%\nred \x1b[31m \xff\r\nlast")
    shown = bashrac("logs", path).stdout.splitlines()[1:]
    assert shown == ["100%", "red \\x1b[31m \ufffd", "last"]


def test_follow_goes_on_with_what_is_written_there_and_in_the_next_log(leave, tmp_path):
    """Ended by Ctrl-C, without a word about it."""
    path = leave("sft-seed0.log", "first\n")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline", "logs", str(path), "--follow"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    read = process.stdout.readline
    assert [read(), read()] == ["==> runs/tiny/logs/sft-seed0.log\n", "first\n"]
    logs = tmp_path / "runs" / "tiny" / "logs"
    with (logs / "sft-seed0.log").open("a") as log:
        log.write("second\nhalf a li")
    assert read() == "second\n"
    with (logs / "sft-seed0.log").open("a") as log:
        log.write("ne\n")
    assert read() == "half a line\n"
    (logs / "bash-seed0.log").write_text("other\n")
    assert [read(), read(), read()] == ["\n", "==> runs/tiny/logs/bash-seed0.log\n", "other\n"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
