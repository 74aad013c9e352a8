"""Commands that run no step must start at once: no torch, trl or datasets."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

HEAVY = ("torch", "trl", "datasets", "transformers", "scipy", "statsmodels")
COMMANDS = [
    ["--help"],
    ["recipes"],
    ["check", "demo"],
    ["plan", "demo"],
    ["plan", "demo", "--commands"],
    ["status", "demo"],
    ["logs", "demo"],
    ["report", "demo"],
    ["report", "demo", "--format", "json"],
    ["clean"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_light_command_imports_nothing_heavy(command, tmp_path):
    code = (
        "import sys, json\n"
        "from pipeline.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    (tmp_path / "runs" / "steps").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "logs").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "logs" / "sft-seed0.log").write_text("said\n")
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout, done.stderr
    loaded = json.loads(done.stderr.splitlines()[-1])
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)


@pytest.mark.launches
@pytest.mark.parametrize(
    "command", [["--help"], ["plan", "demo"], ["status", "demo"], ["report", "demo"]], ids=" ".join
)
def test_a_light_command_takes_under_half_a_second(command, tmp_path):
    """Of a core: what else the machine does must not decide, and so the best of ten."""
    seconds = []
    for _ in range(10):
        begin = os.times()
        subprocess.run(
            [sys.executable, "-m", "pipeline", *command],
            check=True, capture_output=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        end = os.times()
        user, system = (
            end.children_user - begin.children_user,
            end.children_system - begin.children_system,
        )
        seconds.append(user + system)
    assert min(seconds) < 0.5, seconds
