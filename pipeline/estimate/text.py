"""Prints what the steps of a plan will take: tables of steps and memory, and notes."""

from __future__ import annotations

import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from pipeline.estimate.estimate import estimate
from pipeline.estimate.judging import endpoint_notes, engine_of
from pipeline.estimate.memory import is_known_optimizer
from pipeline.estimate.step import Estimate
from pipeline.estimate.tokens import WRITING
from pipeline.plan.plan import Plan
from pipeline.recipe.shipped import Launch
from pipeline.steps.options import TrainOptions
from pipeline.text import format_duration

GB = 1e9
# What a process with torch, transformers and TRL holds besides any model, on a CPU.
_LIBRARIES = 0.6e9
# Kinds of steps that take memory or time; the others compare, pair or grade rows.
_SHOWN = ("train", "merge", *WRITING)
_PARTS = ("weights", "gradients", "optimizer", "reference", "cache", "passes")


def estimate_plan(
    plan: Plan,
    runs: Path,
    launch: Launch,
    *,
    gpu_memory: float | None,
    speed: float | None,
    price_per_hour: tuple[float, str] | None = None,
) -> tuple[str, bool]:
    """Return what the steps of a plan will take, as text, and whether all fit.

    The text is a table of steps, one of what their memory consists of, and notes.

    Args:
        plan: the plan.
        runs: the folder of all results.
        launch: what it will run on.
        gpu_memory: what a process may hold, in GB; None where nobody asked.
        speed: tokens per second of all processes; None for what finished steps measured.
        price_per_hour: of one GPU, or of the machine where there is none, and its currency.
    """
    # Imported on a machine without a GPU, it warns of a slow kernel; none is used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    limit = math.inf if gpu_memory is None else gpu_memory * GB
    estimates = estimate(plan, runs, launch, tokens_per_second=speed, limit=limit)
    shown = [one for one in estimates if one.step.kind in _SHOWN or engine_of(one.step) == "local"]
    numbers = {step.fingerprint: number for number, step in enumerate(plan.steps, start=1)}
    hidden = sum(one.times for one in estimates) - sum(one.times for one in shown)
    lines = [
        *_head(shown, plan, launch),
        "",
        *_step_table(shown, numbers, limit),
        *_memory_table(shown, numbers),
        "",
        *_notes(shown, hidden, launch),
        *endpoint_notes(estimates, runs),
        *_time_notes(shown, launch, price_per_hour),
        *_disk_note(shown, runs),
        *_verdict(shown, limit),
    ]
    return "\n".join(lines), not _misfits(shown, limit)


def _head(shown: Sequence[Estimate], plan: Plan, launch: Launch) -> list[str]:
    total = next((one.total for one in shown if one.total), 0)
    size = f": {total:,} parameters" if total else ""
    if launch.processes == 1:
        processes = f"1 process on {'the CPU' if launch.use_cpu else 'a GPU'}"
    else:
        device = "on the CPU" if launch.use_cpu else "with a GPU each"
        processes = f"{launch.processes} processes {device}"
    return [
        f"model   {plan.recipe.model}{size}",
        f"launch  {launch.path.stem}: {processes}; memory is that of one process, in GB of 10^9 "
        "bytes",
        *_precision_lines(shown),
    ]


def _precision_lines(shown: Sequence[Estimate]) -> list[str]:
    """What steps will compute in, and why; training apart where it differs."""
    found: dict[str, set[str]] = defaultdict(set)
    for one in shown:
        if one.precision:
            part = "training" if one.step.kind == "train" else "reading"
            found[part].add(one.precision.description)
    words = {kind: " or ".join(sorted(several)) for kind, several in found.items()}
    if len(set(words.values())) > 1:
        return [f"precision  {kind} in {precision}" for kind, precision in words.items()]
    return [f"precision  {precision}" for precision in set(words.values())]


def _step_table(
    shown: Sequence[Estimate], numbers: Mapping[str, int], limit: float
) -> Iterator[str]:
    """A table of steps; with a limit, whether each fits."""
    rows = [["#", "step", "trains", "memory", "fits", "tokens", "time"]]
    for one in shown:
        times = f" (x {one.times} seeds)" if one.times > 1 else ""
        time = format_duration(one.seconds) if one.seconds else ""
        rows.append(
            [
                str(numbers[one.step.fingerprint]),
                f"{one.step.stage}: {one.step.title}{times}",
                _count(one.trained) if one.trained else "",
                "?" if one.unknown else f"{_gb(one.bytes)} GB" if one.bytes else "",
                _fits(one, limit),
                _tokens(one),
                f"took {time}" if one.done and time else time,
            ]
        )
    if limit == math.inf:
        rows = [[*row[:4], *row[5:]] for row in rows]
    return _table(rows, right=(0, 2, 3))


def _memory_table(shown: Sequence[Estimate], numbers: Mapping[str, int]) -> list[str]:
    """A table of what memory consists of; steps in which it is equal share a row."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for one in shown:
        if one.memory:
            sizes = [getattr(one.memory, part) for part in _PARTS]
            parts = tuple(_gb(size) if size else "" for size in sizes)
            alike[parts].append(str(numbers[one.step.fingerprint]))
    if not alike:
        return []
    rows = [[*_PARTS, "in steps"], *([*parts, ", ".join(n)] for parts, n in alike.items())]
    return ["", "What that memory is made of, in GB:", *_table(rows, right=range(6))]


def _fits(one: Estimate, limit: float) -> str:
    if one.done:
        return "done"
    if one.bytes is None:
        return "?" if one.unknown else ""
    return "yes" if one.bytes <= limit else "NO"


def _tokens(one: Estimate) -> str:
    """Such as 'at most ~1,200 to write'; '~' where rows do not exist yet, or were sampled."""
    work = one.work
    if one.done:
        count, word = work.timed
        return f"{count:,} {word}"
    about = "~" if work.assumes or work.sampled else ""
    most = f"at most {about}" if work.at_most else about
    counts = (
        (work.trained, most, "to train"), (work.read, about if work.written else most, "to read"),
        (work.written, most, "to write"),
    )  # fmt: skip
    return ", ".join(f"{prefix}{count:,} {word}" for count, prefix, word in counts if count)


def _notes(shown: Sequence[Estimate], hidden: int, launch: Launch) -> Iterator[str]:
    """What the tables do not say."""
    if hidden:
        yield f"{hidden} more steps compare, pair or grade rows and take little."
    if launch.use_cpu:
        yield (
            f"On a CPU, Python and its libraries take about {_LIBRARIES / GB:g} GB more; what "
            "finished steps measured includes them."
        )
    if any(one.work.assumes for one in shown):
        yield "~ rows that a stage writes itself are taken to be as long as the references."
    if any(one.work.sampled for one in shown):
        yield "~ of long data, 5,000 rows were counted, and the longest."
    if any("held_out" in one.step.runtime_options for one in shown if not one.done):
        yield "Times leave out held-out losses (eval_strategy): a pass over validation rows each."
    yield from sorted({f"? {one.unknown}." for one in shown if one.unknown})
    training: list[TrainOptions] = [one.step.options for one in shown if one.step.kind == "train"]
    trainers = [options["trainer"] for options in training]
    optimizers = {str(trainer["optim"]) for trainer in trainers if "optim" in trainer}
    for name in sorted(optimizers):
        if not is_known_optimizer(name):
            yield f"The states that {name} keeps are not known here; they are taken to be AdamW's."


def _time_notes(
    shown: Sequence[Estimate], launch: Launch, price_per_hour: tuple[float, str] | None
) -> Iterator[str]:
    """How long all steps together will take, and what that costs."""
    ahead = [one for one in shown if not one.done]
    timed = [one for one in ahead if one.seconds]
    untimed = sum(one.times for one in ahead if not one.seconds and one.work.timed[0])
    if timed:
        total = sum((one.seconds or 0) * one.times for one in timed)
        price = _format_price(total, launch, price_per_hour)
        several = "s" if untimed > 1 else ""
        rest = f", and {untimed} more step{several} without a time" if untimed else ""
        yield f"time still to run: about {format_duration(total)}{price}{rest}."
    if untimed:
        yield (
            "No time where nothing like it has run with this model on this kind of device: give "
            "--tokens-per-second N, or run a few rows first (--set data.train.limit=64), which "
            "leaves its speed in the records."
        )


def saved_bytes(one: Estimate, whole: int) -> int:
    """What the weights take that a step saves, in float32: those of an adapter, or all `whole`."""
    is_adapter = one.step.kind == "train" and one.step.options["lora"] is not None
    return 4 * (one.trained if is_adapter else whole)


def _disk_note(shown: Sequence[Estimate], runs: Path) -> Iterator[str]:
    """What the weights that are still to be saved will take on the disk."""
    saving = [one for one in shown if not one.done and one.step.kind in ("train", "merge")]
    parameters = next((one.total for one in shown if one.total), 0)
    weights = [saved_bytes(one, parameters) for one in saving]
    if not any(weights):
        return
    in_all = sum(size * one.times for one, size in zip(saving, weights, strict=True))
    # A checkpoint holds the optimizer's states too, and the one before is removed after it.
    states = [one.memory.optimizer if one.memory else 0 for one in saving]
    most = 2 * max(map(sum, zip(weights, states, strict=True)))
    there = next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())
    steps = sum(one.times for one in saving)
    yield (
        f"disk: about {_gb(in_all)} GB for the weights of {steps} steps, "
        f"and up to {_gb(most)} GB more for checkpoints while one trains; rows and answers take "
        f"little beside. {_gb(shutil.disk_usage(there).free)} GB are free at {there}."
    )


def _format_price(seconds: float, launch: Launch, price_per_hour: tuple[float, str] | None) -> str:
    """Such as ', 26.7 GPU-hours, 66.75 EUR'; on a CPU hours are those of the machine."""
    hours = seconds / 3600 * (1 if launch.use_cpu else launch.processes)
    words = "" if launch.use_cpu else f", {hours:.1f} GPU-hours"
    if price_per_hour is None:
        return words
    price, currency = price_per_hour
    return f"{words}, {hours * price:,.2f} {currency}".rstrip()


def _misfits(shown: Sequence[Estimate], limit: float) -> list[Estimate]:
    """The steps still to run that need more memory than there is."""
    return [one for one in shown if not one.done and (one.bytes or 0) > limit]


def _verdict(shown: Sequence[Estimate], limit: float) -> list[str]:
    """Whether all fits, and what to do about each step that does not."""
    if limit == math.inf:
        return []
    known = ", as far as known" if any(one.unknown for one in shown) else ""
    misfits = _misfits(shown, limit)
    if not misfits:
        return [f"fits {limit / GB:g} GB: all steps{known}"]
    alike: dict[str, list[str]] = defaultdict(list)
    for one in misfits:
        needs = f"{_gb(one.bytes or 0)} GB needed; {_way_out(one, limit)}"
        alike[needs].append(f"{one.step.stage}: {one.step.title}")
    lines = [f"does not fit {limit / GB:g} GB: {len(misfits)} of {len(shown)} steps{known}"]
    for needs, names in alike.items():
        lines += [f"  {', '.join(names)}", f"    {needs}"]
    return lines


def _way_out(one: Estimate, limit: float) -> str:
    """What lowers a step's memory, and by how much where that is known."""
    memory = one.memory
    assert memory is not None
    if engine_of(one.step) == "local":
        fewer_bits = "" if one.step.options["judge"].get("quantize") else "judge.quantize: nf4, or "
        return f"its weights take most of it; {fewer_bits}a smaller judge"
    if one.step.kind != "train":
        rest = memory.total - memory.cache
        tokens = one.step.runtime_options["batch_tokens"]
        if memory.cache and rest < limit:
            fewer = int(tokens * (limit - rest) / memory.cache * 0.95)
            return f"generation.batch_tokens {fewer} (it is {tokens}; no result changes)"
        if memory.passes > memory.weights:
            return "its passes take most of it; lower max_length, or take a smaller model"
        return "its weights alone take most of it; quantize: nf4, or a smaller model"
    ways, options = [], cast(TrainOptions, one.step.options)
    if one.smallest is not None and one.smallest < memory.total:
        noise = options["trainer"].get("neftune_noise_alpha")
        change = "NEFTune's noise changes with it" if noise else "no result changes"
        fewer = f"micro_batch_size 1 (now {one.rows}; {change}) makes it {_gb(one.smallest)} GB"
        if one.smallest <= limit:
            return fewer
        ways.append(f"{fewer}, which is not enough")
    if options["lora"] is None:
        ways.insert(0, "lora trains an adapter in place of all weights")
    elif not options.get("quantize"):
        ways.insert(0, "quantize: nf4 keeps the base in 4 bits")
    else:
        ways.append("lower trainer.max_length, or take a smaller model")
    return "; ".join(ways)


def _table(rows: Sequence[Sequence[str]], *, right: Collection[int]) -> Iterator[str]:
    """Lay out a head and rows in columns; those in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = rows
    for row in (head, ["-" * width for width in widths], *body):
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= 9.95 * GB else f"{size / GB:.2f}"


def _count(number: int) -> str:
    """Parameters in short: 4.9 M, 7.24 B."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
