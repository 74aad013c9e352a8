"""The table of docs/reliability.md: each fault, how it was injected, how often, what came of it.

    python benchmarks/reliability.py [--kills 50]

Runs the tests that inject faults and benchmarks/kill.py, and prints what they say of it. Exits 1
where one of them fails; a fault whose test fails is not in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Inject every fault and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    given = parser.parse_args()
    tests = sorted(map(str, ROOT.glob("tests/test_fault_*.py")))
    tests.append(str(ROOT / "tests" / "test_determinism.py"))
    commands = [
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:randomly", *tests],
        [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--kills", str(given.kills)],
    ]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "faults.jsonl"
        found.touch()
        environment = {**os.environ, "BASHRAC_FAULTS": str(found), "PYTHONPATH": str(ROOT)}
        codes = [
            subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr).returncode
            for command in commands
        ]
        rows = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    print("| fault | how it was injected | times | outcome |")
    print("| --- | --- | ---: | --- |")
    for row in rows:
        cells = [row["fault"], row["how"], f"{row['times']:,}", row["outcome"]]
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    minutes = (time.monotonic() - began) / 60
    print(f"\n{len(rows)} faults, {minutes:.0f} min, {platform.machine()}, {os.cpu_count()} cores")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
