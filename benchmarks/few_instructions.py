"""How far length-controlled win rates on some of AlpacaEval's instructions lie from those on all.

    python benchmarks/few_instructions.py DATA/alpaca_eval2

prints the table of docs/evaluation.md. Verdicts are published ones; `benchmarks/ground_truth.py`
says which files belong there. Instructions are drawn without replacement, and each draw is scored
as a benchmark's step scores it. Intervals are for new instructions, so from half of all 805 on they
hold the number on all 805 more often than they should.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from ground_truth import read_models  # noqa: E402 - from this checkout

from eval.benchmarks.alpaca_files import (  # noqa: E402
    read_difficulties,
    read_gamed,
    read_model_outputs,
)
from eval.graders.length_control import WinRate, length_controlled_win_rate  # noqa: E402

# Weak and strong ones, concise and verbose ones.
MODELS = (
    "pythia-12b-mix-sft", "vicuna-7b", "gpt4_0613_concise", "claude-2",
    "FuseChat-Llama-3.2-1B-Instruct", "FuseChat-Qwen-2.5-7B-Instruct",
)  # fmt: skip
SIZES = (50, 100, 150, 200, 300, 400)


class Off(NamedTuple):
    """Of one model and size: mean and root mean square of the error in points, intervals held."""

    bias: float
    error: float
    held: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--resamples", type=int, default=100)
    given, start = parser.parse_args(), time.monotonic()
    table, gamed = read_table(given.data)
    print(f"({given.draws} draws of {len(MODELS)} models, {given.resamples} resamples)\n")
    print("| n | error, all / largest | bias, largest | interval holds, all / least |")
    print("| ---: | ---: | ---: | ---: |")
    for n in SIZES:
        offs = [off(table[name], gamed, n, given.draws, given.resamples) for name in MODELS]
        errors, held = [one.error for one in offs], [one.held for one in offs]
        bias = max((one.bias for one in offs), key=abs)
        print(
            f"| {n} | {np.sqrt(np.mean(np.square(errors))):.1f} / {max(errors):.1f} | {bias:+.1f} "
            f"| {np.mean(held):.2f} / {min(held):.2f} |",
            flush=True,
        )
    print(f"\n({time.monotonic() - start:.0f} s)")


def read_table(data: Path) -> tuple[dict[str, np.ndarray], Sequence[Sequence[float]]]:
    """Preference, both lengths and difficulty of every instruction by model; the gamed rows."""
    files = (data / f"{name}.csv" for name in ("preferences", "output_lengths", "published"))
    outputs = read_model_outputs(next(data.glob("*.model_outputs.json")))
    difficulty = read_difficulties(
        data / "instruction_difficulty.csv", [row["instruction"] for row in outputs]
    )
    models = read_models(*files)
    columns = {name: (*models[name].columns, list(difficulty.values())) for name in MODELS}
    gamed = read_gamed(min(data.glob("df_gamed*.csv")))
    return {name: np.array(of_one) for name, of_one in columns.items()}, gamed


def off(
    columns_4N: np.ndarray, gamed: Sequence[Sequence[float]], n: int, draws: int, resamples: int
) -> Off:
    """How far draws of n instructions are off."""
    rng = np.random.default_rng(n)
    whole = win_rate(columns_4N, gamed, 0).lc_win_rate
    assert whole is not None
    errors, held = [], []
    for _ in range(draws):
        chosen = np.sort(rng.choice(columns_4N.shape[1], n, replace=False))
        found = win_rate(columns_4N[:, chosen], gamed, resamples)
        assert found.lc_win_rate is not None and found.lc_interval is not None
        errors.append(found.lc_win_rate - whole)
        held.append(found.lc_interval.low <= whole <= found.lc_interval.high)
    error = float(np.sqrt(np.mean(np.square(errors))))
    return Off(float(np.mean(errors)), error, float(np.mean(held)))


def win_rate(columns_4N: np.ndarray, gamed: Sequence[Sequence[float]], resamples: int) -> WinRate:
    """The win rate of the instructions in these columns."""
    preferences, lengths, baseline, difficulty = columns_4N
    return length_controlled_win_rate(
        preferences, lengths, baseline, difficulty, gamed, resamples=resamples
    )


if __name__ == "__main__":
    main()
