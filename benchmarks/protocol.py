"""How often a report's intervals and verdicts are right, simulated through the report's own code.

    python benchmarks/protocol.py

prints the tables of docs/evaluation.md. Right and wrong answers are drawn from models whose true
accuracies are known: examples differ in difficulty, each arm finds some of them easier than the
other arm does, and each training seed shifts its model by as many points as `scatter` says.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eval.stats.holm import holm  # noqa: E402 - from this checkout
from eval.stats.seeds import (  # noqa: E402
    added_to,
    mean_over_seeds,
    parts_of,
    two_sided_p,
)

SCATTERS = (0, 1, 2, 4)  # points, standard deviation of an arm's accuracy over training seeds
SIZES = (100, 600, 1319)
DIFFICULTY, TASTE = 2.0, 1.0  # logits: how examples differ, and how arms differ on an example
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_CELLS = 4_000_000  # of the largest temporary array


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=5000)
    trials, start = parser.parse_args().trials, time.monotonic()
    print(f"({trials} trials a cell)\n")
    two_arms(trials)
    many_arms(trials)
    few_examples(trials)
    print(f"({time.monotonic() - start:.0f} s)")


def two_arms(trials: int) -> None:
    """Two arms: how often equal ones differ, the interval holds, and 5 points are found."""
    print("| n | seeds | scatter | equal arms differ | interval holds | +5 points are found |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for n in SIZES:
        for seeds in (2, 3, 5):
            for scatter in SCATTERS:
                null, held_0 = compare(trials, n, seeds, scatter, points=0.0)
                power, held_5 = compare(trials, n, seeds, scatter, points=5.0)
                held = min(held_0, held_5)
                print(f"| {n} | {seeds} | {scatter} | {null:.3f} | {held:.3f} | {power:.2f} |")
    print()


def compare(trials: int, n: int, seeds: int, scatter: float, points: float) -> tuple[float, float]:
    """Shares of trials in which p is below 0.05, and in which the interval holds the truth."""
    rng = np.random.default_rng([n, seeds, int(scatter), int(points)])
    u, shift = _seed_effect(scatter), _shift(scatter, points)
    found, held = [], []
    chunk = max(1, _CELLS // (2 * seeds * n))
    for first in range(0, trials, chunk):
        size = min(chunk, trials - first)
        shared = rng.standard_normal((size, 1, 1, n), dtype=np.float32) * DIFFICULTY
        right = _answers(rng, shared, np.array([0.0, shift]), seeds, u)
        parts = parts_of(added_to(right[:, 1] - right[:, 0]))
        found.append(two_sided_p(parts, seeds, n + 2) < 0.05)
        held.append(two_sided_p(parts, seeds, n + 2, true=points / 100) >= 0.05)
    return float(np.concatenate(found).mean()), float(np.concatenate(held).mean())


def many_arms(trials: int) -> None:
    """Seven arms that are equal, against one: how often any is called better or worse."""
    print("| seven equal arms | seeds | scatter | any by p alone | any by Holm |")
    print("| --- | ---: | ---: | ---: | ---: |")
    n = 600
    for seeds in (2, 3, 5):
        for scatter in SCATTERS:
            rng = np.random.default_rng([seeds, scatter])
            u, alone, adjusted = _seed_effect(scatter), 0, 0
            chunk = max(1, _CELLS // (8 * seeds * n))
            for first in range(0, trials, chunk):
                size = min(chunk, trials - first)
                shared = rng.standard_normal((size, 1, 1, n), dtype=np.float32) * DIFFICULTY
                right = _answers(rng, shared, np.zeros(8), seeds, u)
                p = two_sided_p(parts_of(added_to(right[:, 1:] - right[:, :1])), seeds, n + 2)
                alone += int((p < 0.05).any(axis=1).sum())
                adjusted += sum(min(holm(list(row))) < 0.05 for row in p)
            print(
                f"| n = {n} | {seeds} | {scatter} | {alone / trials:.3f} | "
                f"{adjusted / trials:.3f} |"
            )
    print()


def few_examples(trials: int) -> None:
    """One model's own number on few examples: how often the interval holds the true mean."""
    shapes = {
        "verdicts, sure (Beta 0.1, 0.15)": (0.1, 0.15, True),
        "verdicts, sure, rarely won (Beta 0.05, 0.5)": (0.05, 0.5, True),
        "verdicts, unsure (Beta 2, 3)": (2.0, 3.0, True),
        "ROUGE-like (Beta 2, 8)": (2.0, 8.0, False),
        "ROUGE-like, skew (Beta 1, 6)": (1.0, 6.0, False),
    }
    sizes = (5, 10, 20, 50, 100)
    print(f"| scores | {' | '.join(f'n = {n}' for n in sizes)} |")
    print(f"| --- | {' | '.join('---:' for _ in sizes)} |")
    for name, (a, b, verdicts) in shapes.items():
        held = []
        for n in sizes:
            rng = np.random.default_rng(n)
            drawn = rng.beta(a, b, size=(trials, n))
            ends = [mean_over_seeds([row], verdicts=verdicts)[1:3] for row in drawn]
            held.append(np.mean([low <= a / (a + b) <= high for low, high in ends]))
        print(f"| {name} | {' | '.join(f'{share:.3f}' for share in held)} |")
    print()


def _answers(
    rng: np.random.Generator, shared: np.ndarray, shifts: np.ndarray, seeds: int, u: float
) -> np.ndarray:
    """Right (1) or wrong (0): float32 [trials, arms, seeds, examples]."""
    size, n, arms = len(shared), shared.shape[-1], len(shifts)
    logits = shared + TASTE * rng.standard_normal((size, arms, 1, n), dtype=np.float32)
    logits = logits + np.float32(u) * rng.standard_normal((size, arms, seeds, 1), dtype=np.float32)
    logits += shifts.astype(np.float32)[:, None, None]
    return (rng.random(logits.shape, dtype=np.float32) * (1 + np.exp(-logits)) < 1).astype("f4")


def _accuracy(mean: float, spread: float) -> float:
    return float(_WEIGHTS @ (1 / (1 + np.exp(-(mean + spread * _NODES)))))


def _seed_effect(scatter: float) -> float:
    """Logits that move the accuracy by `scatter` points, at an accuracy of one half."""
    spread, step = float(np.hypot(DIFFICULTY, TASTE)), 1e-4
    slope = (_accuracy(step, spread) - _accuracy(-step, spread)) / (2 * step)
    return scatter / 100 / slope


def _shift(scatter: float, points: float) -> float:
    """Logits that make an arm right on `points` more of 100 examples."""
    spread = float(np.sqrt(DIFFICULTY**2 + TASTE**2 + _seed_effect(scatter) ** 2))
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        is_less = _accuracy(middle, spread) - 0.5 < points / 100
        low, high = (middle, high) if is_less else (low, middle)
    return low


if __name__ == "__main__":
    main()
