"""What do the allocator settings that `bashrac run` makes on a CPU gain?

    python benchmarks/allocator.py [--rows 96]

Trains the same SFT stage with glibc's defaults and with the settings of
`pipeline/run/launcher.py`, in turn, and prints seconds, peak memory and the ratio.
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
sys.path.insert(0, str(ROOT))

from pipeline.run.launcher import CPU_ALLOCATOR  # noqa: E402 - from this checkout


def main() -> None:
    """Print seconds and peak memory of a training step with and without the settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=96)
    given = parser.parse_args()
    seconds = {}
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    launch += [str(ROOT / "accelerate_configs" / "cpu.yaml"), "-m", "pipeline", "run", "demo"]
    with tempfile.TemporaryDirectory() as name:
        for which, more in (("glibc defaults", {}), ("bashrac", CPU_ALLOCATOR)):
            runs = Path(name) / which.replace(" ", "-")
            options = ["--stage", "sft", "--runs", str(runs), "--set", "evaluate=[]"]
            options += ["--set", f"data.train.limit={given.rows}"]
            command = [sys.executable, *launch, *options]
            threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **threads, **more}
            subprocess.run(command, check=True, env=environment, capture_output=True)
            record = json.loads(next(runs.glob("steps/train-*/record.json")).read_text())
            seconds[which] = record["seconds"]
            peak = record["peak_memory_bytes"] / 1e9
            print(f"{which}: {record['seconds']:.1f} s, peak {peak:.2f} GB", flush=True)
    ratio = seconds["glibc defaults"] / seconds["bashrac"]
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"glibc defaults / bashrac = {ratio:.2f} ({given.rows} rows, {machine})")


if __name__ == "__main__":
    main()
