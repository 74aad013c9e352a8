"""Counter-based random numbers: a function of (seed, row, position), not of the order of draws.

A row's replaced positions and its samples are therefore the same for every batch size, number of
processes and engine, and after a resume. The generator is SplitMix64 (Steele, Lea and Flood 2014)
used as a hash, in wrapping int64 arithmetic, which torch computes identically on every device.
"""

from __future__ import annotations

import torch

# Streams keep draws for different purposes independent.
REPLACE, SAMPLE, CHOOSE, LABEL = 1, 2, 3, 4

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_WIDTH = 1 << 52  # not 53 bits: adding 0.5 must stay exact in float64
_AT_ONCE_CPU, _AT_ONCE = 1 << 18, 1 << 26


def keys(seed: int, rows: torch.Tensor, positions: torch.Tensor, *, stream: int) -> torch.Tensor:
    """Return one 64-bit key per (row, position): int64, in the broadcast shape of both."""
    # Not torch.tensor, for which the host would wait for a GPU.
    start = torch.full((), _signed(seed + _GOLDEN * stream), dtype=torch.int64, device=rows.device)
    key = _mix(start)
    key = _mix(key ^ _mix(rows.to(torch.int64) + _GOLDEN))
    return _mix(key ^ _mix(positions.to(torch.int64) - _GOLDEN))


def uniform(key: torch.Tensor) -> torch.Tensor:
    """Return float64 numbers strictly between 0 and 1, with 52 random bits each."""
    bits = _mixed_in_place(key + _GOLDEN)
    bits >>= 12
    bits &= _WIDTH - 1  # int64 shifts copy the sign bit
    return bits.to(torch.float64).add_(0.5).div_(_WIDTH)


def gumbel(key_N: torch.Tensor, size: int) -> torch.Tensor:
    """Return standard Gumbel noise, float32 [N, size]: argmax(logits + noise) is a sample.

    float64 inside: with 24 random bits the largest values, which decide rare tokens, would tie.
    """
    column = _GOLDEN * torch.arange(1, size + 1, dtype=torch.int64, device=key_N.device)
    found = torch.empty(len(key_N), size, device=key_N.device)
    # A few rows at a time: intermediates that stay in a CPU's cache make this six times as fast.
    rows = max(1, (_AT_ONCE_CPU if key_N.device.type == "cpu" else _AT_ONCE) // size)
    for start in range(0, len(key_N), rows):
        noise = uniform(key_N[start : start + rows, None] + column)
        found[start : start + rows] = noise.log_().neg_().log_().neg_()
    return found


def _signed(number: int) -> int:
    """A Python integer wrapped to 64 bits, as torch's own arithmetic does."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(value: torch.Tensor) -> torch.Tensor:
    return _mixed_in_place(value.clone())


def _mixed_in_place(value: torch.Tensor) -> torch.Tensor:
    part = torch.empty_like(value)
    for by, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        torch.bitwise_right_shift(value, by, out=part)
        part &= (1 << (64 - by)) - 1  # a logical shift; torch's own is arithmetic
        value ^= part
        if factor is not None:
            value *= factor
    return value
