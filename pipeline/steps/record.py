"""The record of a finished step: identity, inputs, versions, hardware, time and files."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from pipeline.hardware.threads import threads_of_launch
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import RuntimeOptions
    from pipeline.steps.spec import Identity

_VERSIONED = (
    "bashrac", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes",
)  # fmt: skip


class Speed(TypedDict):
    """Return the record of a step that has just finished."""

    mean: float
    best: float
    windows: int


class HeldOutPoint(TypedDict):
    """The loss on held-out rows at one optimizer step, over so many tokens."""

    step: int
    epoch: float
    loss: float
    tokens: int


class HeldOut(TypedDict):
    """Held-out rows, by what became of them, and the curve of their loss."""

    data: dict[str, int]
    curve: NotRequired[list[HeldOutPoint]]


class Metrics(TypedDict, total=False):
    """What a step's function notes; `figures` and `warnings` are shown in reports."""

    figures: dict[str, float]
    warnings: list[str]
    rows: int
    answers: int
    truncated: int  # answers that were cut at the token limit
    data: dict[str, int]  # rows that were read, by what became of them
    sources: dict[str, int]  # rows of each part of a mixture
    rendering: str | None  # `Renderer.digest`
    template_date: str
    tokens_generated: int
    tokens_read: int
    tokens_per_second: Speed
    rows_of_each_process: list[int]
    vllm: str | None  # its version
    optimizer_steps: int
    optimizer_steps_left_out: int
    epochs: float
    tokens_trained: int
    first_loss: float | None
    last_loss: float | None
    held_out: HeldOut
    padding_share: float
    merged_adapter: str
    judge_calls: int
    judgement: dict[str, Any]  # `Judgement.summary`


class Record(TypedDict):
    """`record.json` of a finished step."""

    kind: str
    title: str
    fingerprint: str
    identity: Identity
    inputs: dict[str, Any]
    neutral: RuntimeOptions
    seed: int
    versions: dict[str, str]
    host: str
    device: str
    precision: dict[str, Any] | None  # the fields of a `Precision`
    threads: list[int]
    processes: int
    git_commit: str | None
    started: str
    ended: str
    seconds: float
    peak_memory_bytes: int
    metrics: Metrics
    files: dict[str, artifact.FileDigest]
    removed: NotRequired[list[str]]  # weights that were removed since (`keep: final`)
    digest: NotRequired[str]  # of all the rest


Records = dict[str, Record]  # by fingerprint


def make_record(step: StepContext, *, started: datetime, seconds: float) -> Record:
    """Return the record of a step that has just finished: what, on what, with what, how long."""
    return {
        "kind": step.spec.kind,
        "title": step.spec.title,
        "fingerprint": step.spec.fingerprint,
        "identity": step.spec.identity,
        "inputs": step.locations,
        "neutral": step.runtime_options,
        "seed": step.seed,
        "versions": _versions(),
        "host": platform.node(),
        "device": _describe_device(step),
        "precision": asdict(step.precision) if step.computes else None,
        "threads": _threads(),
        "processes": step.state.num_processes,
        "git_commit": _git_commit(),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": _peak_memory(step),
        "metrics": step.metrics,
        "files": artifact.written_files(step.directory),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _git_commit() -> str | None:
    """The commit of bashrac's checkout, with '+changes' if the working tree is modified."""
    import subprocess

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes"]
        done = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _threads() -> list[int]:
    """The thread counts used; several if they were adapted to other programs' load."""
    import torch

    known = threads_of_launch()
    return sorted(known.used) if known else [torch.get_num_threads()]


def _describe_device(step: StepContext) -> str:
    if step.device.type == "cuda":
        import torch

        return f"{step.state.num_processes} x {torch.cuda.get_device_name()}"
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"


def reset_peak_memory(step: StepContext) -> None:
    """Free what an earlier step of this process left, and reset the peak."""
    gc.collect()
    if step.device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not glibc, or not permitted: harmless
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(step: StepContext) -> int:
    """Peak bytes of the main process in this step: of the GPU if there is one, else resident."""
    if step.device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        high_water = next(line for line in lines if line.startswith("VmHWM"))
        return int(high_water.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS; since the process started
