"""kill -9 at random moments: see benchmarks/kill.py, which also prints what it found."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_runs_end_as_if_nothing_had_happened():
    command = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--kills", "8", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 8 (" in done.stdout and "BROKEN" not in done.stdout
