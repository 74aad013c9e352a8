"""What does a training step of the demo take in each precision, on this machine?

    python benchmarks/precision.py [--rows 16]

Trains the demo's `sft` stage on the embedded model in bfloat16 and in float32, each in a run of its
own, and prints seconds of an optimizer step, in the mean, and what `auto` takes here. Without
native bfloat16 a step in bfloat16 takes most of a minute, so the rows are few.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=16, help="that are trained on, 4 a step")
    given = parser.parse_args()
    print("| precision | seconds a step | of float32 |\n| --- | --- | --- |")
    seconds = {}
    for precision in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as runs:
            seconds[precision] = train(precision, given.rows, Path(runs))
        ratio = seconds[precision] / seconds["float32"]
        print(f"| {precision} | {seconds[precision]:.2f} | {ratio:.2f} |", flush=True)
    code = (
        "from pipeline.hardware.precision import hardware; h = hardware('cpu')\n"
        "print(h.best, '-', h.why)"
    )
    best = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    print(f"\nauto: {best.stdout.strip()} ({platform.machine()}, {os.cpu_count()} cores)")


def train(precision: str, rows: int, runs: Path) -> float:
    """Seconds of an optimizer step."""
    command = [sys.executable, "-m", "pipeline", "run", "demo", "--stage", "sft", "--runs"]
    command += [str(runs), "--set", f"precision={precision}", "--set", "evaluate=[]"]
    command += ["--set", f"data.train.limit={rows}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (history,) = runs.glob("steps/train-*/history.json")
    total = json.loads(history.read_text())[-1]
    return total["train_runtime"] / total["step"]


if __name__ == "__main__":
    main()
