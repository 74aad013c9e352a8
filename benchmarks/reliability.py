"""The table of docs/reliability.md: each fault, how it was injected, how often, what came of it.

    python benchmarks/reliability.py

Runs the tests that inject faults and prints what they say of it. Exits 1 where one of them fails; a
fault whose test fails is not in the table. benchmarks/kill.py prints its own figures.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Inject every fault and print the table; returns the exit code."""
    tests = [ROOT / "tests" / "faults", ROOT / "tests" / "evidence" / "test_determinism.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", *map(str, tests)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "faults.jsonl"
        found.touch()
        environment = {**os.environ, "BASHRAC_FAULTS": str(found), "PYTHONPATH": str(ROOT)}
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr).returncode
        rows = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
    print("| fault | how it was injected | times | outcome |")
    print("| --- | --- | ---: | --- |")
    merged: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        # What was tried once, with one outcome, goes in one line; counts are told as they are.
        apart = f"{number}" if row["times"] > 1 else ""
        merged.setdefault((row["fault"], row["outcome"] + apart), []).append(row)
    for same in merged.values():
        hows = "; ".join(dict.fromkeys(row["how"] for row in same))
        times = sum(row["times"] for row in same)
        cells = [same[0]["fault"], hows, f"{times:,}", same[0]["outcome"]]
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    minutes = (time.monotonic() - began) / 60
    print(f"\n{len(rows)} faults, {minutes:.0f} min, {platform.machine()}, {os.cpu_count()} cores")
    return code


if __name__ == "__main__":
    sys.exit(main())
