"""`bashrac score`: win rates of official AlpacaEval annotation files, computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.benchmarks.alpaca_files import (
    read_annotations,
    read_difficulties,
    read_gamed,
    read_model_outputs,
)
from eval.graders.alpaca import RESAMPLES, score, why_not_controlled
from eval.graders.length_control import WinRate
from pipeline.errors import InputError


def describe_scores(
    files: Sequence[Path], reference: Path | None, difficulty: Path | None, gamed: Path | None
) -> str:
    """Score annotation files; returns a few lines a file, for people.

    Args:
        files: `annotations.json` files, gzipped or not.
        reference: `model_outputs.json` of the baseline, for the order of the instructions.
        difficulty: AlpacaEval's difficulties; those in `gamed` where it is None.
        gamed: AlpacaEval's `df_gamed.csv`.

    Raises:
        InputError: If a file cannot be read or scored.
    """
    difficulties = _difficulties(reference, difficulty or gamed)
    gamed_rows = None if gamed is None else read_gamed(gamed)
    lines = []
    for file in files:
        annotations = read_annotations(file)
        try:
            found = score(annotations, difficulties, gamed_rows, resamples=RESAMPLES)
        except ValueError as error:
            raise InputError(f"{file}: {error}") from None
        lines += [str(file), *_describe(found, unjudged=len(annotations) - found.n)]
    return "\n".join(lines)


def _difficulties(reference: Path | None, table: Path | None) -> Mapping[str, float] | None:
    if table is None:
        return None
    if reference is None:
        raise InputError(
            f"{table} gives difficulties in AlpacaEval's order: add --reference FILE, the "
            "baseline's model_outputs.json, which has its instructions"
        )
    return read_difficulties(table, [row["instruction"] for row in read_model_outputs(reference)])


def _describe(found: WinRate, *, unjudged: int) -> list[str]:
    notes = [f"n {found.n}"]
    notes += [] if found.standard_error is None else [f"standard error {found.standard_error:.2f}"]
    notes += [f"{unjudged} without a verdict left out"] if unjudged else []
    reason = why_not_controlled(found)
    controlled = f"no length-controlled win rate: {reason}"
    if reason is None:
        ends = found.lc_interval
        interval = "" if ends is None else f" [{ends.low:.2f}, {ends.high:.2f}]"
        controlled = f"length-controlled {found.lc_win_rate:.2f} %{interval}"
    return [f"  win rate {found.win_rate:.2f} % ({', '.join(notes)})", f"  {controlled}"]
