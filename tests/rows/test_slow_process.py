"""Two processes of which one is slow: its rows, and a row that takes longer than the group waits."""

import os
import re
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


def write(count, make, file_name, **how):
    rows = write_in_shards(step, range(count), make, key=lambda item: (item,), size=lambda item: 1,
                           row_key=lambda row: (row["id"],), tokens=lambda row: 1,
                           file_name=file_name, **how)
    return [row["id"] for row in rows]


def one_by_one(items):
    for item in items:
        time.sleep(0.4 * slow)
        yield {"id": item}


print("taken", write(20, one_by_one, "taken.jsonl", at_once=1) == list(range(20)), flush=True)
if not slow:
    print("made", step.metrics["rows_of_each_process"], flush=True)


def make(items):
    time.sleep(10 * slow)
    yield from ({"id": item} for item in items)


print("rows", write(6, make, "rows.jsonl"), flush=True)
time.sleep(10 * slow)
try:
    step.state.wait_for_everyone()
except Exception as error:
    print("a barrier gives up after ddp_timeout", flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What two processes print."""
    folder = tmp_path_factory.mktemp("slow")
    script = folder / "write.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port", "0", str(script), str(folder / "step")],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.launches
def test_a_slow_process_is_waited_for_longer_than_the_groups_time_out(said):
    """Rows of minutes beside rows of hours: a barrier would end the step, and lose the slow ones."""
    assert said.count("rows [0, 1, 2, 3, 4, 5]") == 2, said
    assert "a barrier gives up after ddp_timeout" in said


@pytest.mark.launches
def test_a_process_that_is_done_takes_rows_from_a_slow_one(said):
    """Ten rows each: dealt out for good, the slow process would have made ten of them."""
    assert said.count("taken True") == 2, said
    (made,) = re.findall(r"made \[(\d+), (\d+)\]", said)
    fast, slow = map(int, made)
    assert fast > 12 and 1 <= slow < 8 and fast + slow in (20, 21), "a row may be made twice"
