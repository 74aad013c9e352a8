"""Two processes of which one writes rows far longer than the group waits."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = """
import os, sys, time
from pathlib import Path

from pipeline.rows.shards import write_in_shards
from pipeline.steps.context import StepContext, StepLaunch
from pipeline.steps.spec import StepSpec

spec = StepSpec(kind="answers", run="pipeline.answers:write_answers", stage="s", seed=0, title="t",
                options={}, inputs={}, locations={},
                runtime_options={"batch_tokens": 8, "trainer": {"ddp_timeout": 4}})
step = StepContext(Path(sys.argv[1]), spec, StepLaunch(processes=2, use_cpu=True))
slow = step.state.process_index == 1


def make(items):
    time.sleep(10 * slow)
    yield from ({"id": item} for item in items)


rows = write_in_shards(step, range(6), make, key=lambda item: (item,), size=lambda item: 1,
                       row_key=lambda row: (row["id"],), tokens=lambda row: 1, file_name="rows.jsonl")
print("rows", [row["id"] for row in rows], flush=True)
time.sleep(10 * slow)
try:
    step.state.wait_for_everyone()
except Exception as error:
    print("a barrier gives up after ddp_timeout", flush=True)
os._exit(0)
"""


@pytest.mark.launches
def test_a_slow_process_is_waited_for_longer_than_the_groups_time_out(tmp_path):
    """Rows of minutes beside rows of hours: a barrier would end the step, and lose the slow ones."""
    script = tmp_path / "write.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port", "0", str(script), str(tmp_path / "step")],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.count("rows [0, 1, 2, 3, 4, 5]") == 2, done.stdout + done.stderr
    assert "a barrier gives up after ddp_timeout" in done.stdout
