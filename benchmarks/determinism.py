"""What stays the same when a recipe runs twice, and when it runs on another number of threads?

    python benchmarks/determinism.py [--rows 32]

Runs SFT and BASH of recipes/demo.yaml on the embedded model, in its bfloat16 and in float32, with
two threads, two again, and one. Prints, beside the first run: which files of rows and weights are
bit for bit the same, how far the weights are apart, and how many answers are the same text.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import result_digests  # noqa: E402 - from this checkout

from pipeline.steps import artifact  # noqa: E402

FLOAT32 = [
    "--set",
    "dtype=float32",
    "--set",
    "generation.dtype=float32",
    "--set",
    "trainer.bf16=false",
]


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=32)
    given = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{machine}; {given.rows} rows")
    print("| numbers | threads | files the same | weights apart | answers the same |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), given.rows)
        for name, options in (("bfloat16", []), ("float32", FLOAT32)):
            runs = [Path(folder) / f"{name}-{number}" for number in range(3)]
            for directory, threads in zip(runs, (2, 2, 1), strict=True):
                run(recipe, directory, threads, options)
            for directory, words in ((runs[1], "2, again"), (runs[2], "1")):
                print(f"| {name} | {words} | {' | '.join(compare(runs[0], directory))} |")


def write_recipe(folder: Path, rows: int) -> Path:
    """The demo with two stages and few rows."""
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    recipe["stages"] = {name: recipe["stages"][name] for name in ("sft", "bash")}
    for role in ("train", "test"):
        recipe["data"][role]["limit"] = rows
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def run(recipe: Path, runs: Path, threads: int, options: list[str]) -> None:
    """Run the recipe on so many threads."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "pipeline", "run", str(recipe), "--runs", str(runs), *options]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def compare(first: Path, second: Path) -> tuple[str, str, str]:
    """Return files the same, how far weights are apart, and answers the same, in words."""
    files, others = result_digests(first), result_digests(second)
    same = sum(others[name] == digest for name, digest in files.items())
    apart, alike = 0.0, []
    for name in files:
        one, two = first / "steps" / name, second / "steps" / name
        if name.endswith(".safetensors"):
            apart = max(apart, distance(one, two))
        if name.endswith(artifact.SAMPLES):
            pairs = zip(artifact.read_rows(one), artifact.read_rows(two), strict=True)
            alike += [row["answer"] == other["answer"] for row, other in pairs]
    return f"{same} of {len(files)}", f"{apart:.1g}", f"{sum(alike)} of {len(alike)}"


def distance(first: Path, second: Path) -> float:
    """The largest difference of two weights, beside the largest weight."""
    one, two = load_file(first), load_file(second)
    largest = max(float(weight.float().abs().max()) for weight in one.values())
    return max(float((one[key].float() - two[key].float()).abs().max()) for key in one) / largest


if __name__ == "__main__":
    main()
