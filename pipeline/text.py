"""Durations and sizes, formatted for people."""

from __future__ import annotations


def format_duration(seconds: float | None) -> str:
    """Return e.g. '42 s', '3 min 05 s', '2 h 10 min', or '' for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(size: int) -> str:
    """Return e.g. '1.2 GB', in powers of ten."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.{0 if unit == 'bytes' else 1}f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
