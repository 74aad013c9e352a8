"""A failed test shows the commands it ran, what they printed last, and their logs."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

TESTS = """
import subprocess

def test_that_fails(bashrac, tmp_path):
    logs = tmp_path / "runs" / "mine" / "logs"
    logs.mkdir(parents=True)
    (logs / "sft-seed0.log").write_text("".join(f"line {number}\\n" for number in range(50)))
    assert bashrac("recipes").returncode == 0
    assert bashrac("check", "no such.yaml").returncode == 0

def test_that_waits_too_long(bashrac):
    bashrac("recipes", timeout=0.001)

def test_that_passes(bashrac):
    assert bashrac("check", "not there.yaml").returncode == 2
"""


@pytest.mark.launches
def test_a_failed_test_shows_commands_exit_codes_last_lines_and_logs(tmp_path):
    (tmp_path / "test_those.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "--tb=line"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "bashrac recipes: exit code 0" in done.stdout and "demo" in done.stdout
    assert "bashrac check 'no such.yaml': exit code 2" in done.stdout
    assert "there is no recipe file" in done.stdout
    assert "bashrac recipes: killed after 0.001 s" in done.stdout
    assert "runs/mine/logs/sft-seed0.log" in done.stdout
    assert "[30 lines before]\nline 30\n" in done.stdout and "line 49\n" in done.stdout
    assert "not there.yaml" not in done.stdout
