"""Shows what the steps of a plan will take, as a table for people."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.estimate.memory import Memory, known_optimizer
from pipeline.plan.plan import Plan
from pipeline.recipe.shipped import Launch
from pipeline.text import format_duration

if TYPE_CHECKING:
    from pipeline.estimate.estimate import Estimate

GB = 1e9
# What a process with torch, transformers and TRL holds beside any model, on a CPU.
LIBRARIES = 0.6e9
# Kinds of steps that have any tokens.
_TOKENS = ("train", "answers", "contexts", "corrections", "gap-contexts", "gap-losses")
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

    Args:
        plan: the plan.
        runs: the folder of all results.
        launch: on what it shall run.
        gpu_memory: what a process may hold, in GB; None where nobody asked.
        speed: tokens a second of all processes; None for what finished steps measured.
        price_per_hour: of one GPU, or of the machine where there is none, and its currency.
    """
    # Without a GPU it warns of a slow kernel as it is imported, and nothing here runs any.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from pipeline.estimate.estimate import estimate

    limit = math.inf if gpu_memory is None else gpu_memory * GB
    found = estimate(plan, runs, launch, tokens_per_second=speed, limit=limit)
    shown_limit = None if gpu_memory is None else limit
    text = estimate_text(found, plan, launch, limit=shown_limit, price_per_hour=price_per_hour)
    return text, not misfits(found, limit)


def estimate_text(
    estimates: Sequence[Estimate],
    plan: Plan,
    launch: Launch,
    *,
    limit: float | None,
    price_per_hour: tuple[float, str] | None = None,
) -> str:
    """Return tables of what steps take and of what their memory is made of, then what to know.

    Args:
        estimates: of the plan's steps.
        plan: the plan.
        launch: on what it shall run.
        limit: bytes that a process may hold, or None where nobody asked.
        price_per_hour: of one GPU, or of the machine where there is none, and its currency.
    """
    shown = [one for one in estimates if one.step.kind in (*_TOKENS, "merge")]
    places = {step.fingerprint: number for number, step in enumerate(plan.steps, start=1)}
    rows = [_row(places[one.step.fingerprint], one, limit) for one in shown]
    fits = [] if limit is None else ["fits"]
    lines = [*_head(shown, plan, launch), ""]
    lines += _table(
        ["#", "step", "trains", "memory", *fits, "tokens", "time"], rows, right=(0, 2, 3)
    )
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for one in shown:
        if one.memory:
            alike[_format_part(one.memory)].append(places[one.step.fingerprint])
    if alike:
        parts = [[*words, ", ".join(map(str, numbers))] for words, numbers in alike.items()]
        lines += ["", "What that memory is made of, in GB:"]
        lines += _table([*_PARTS, "in steps"], parts, right=range(6))
    return "\n".join(
        [*lines, "", *_notes(estimates, shown, launch, price_per_hour), *_verdict(shown, limit)]
    )


def misfits(estimates: Sequence[Estimate], limit: float) -> list[Estimate]:
    """The steps that still have to run and need more memory than there is."""
    return [one for one in estimates if not one.done and (one.bytes or 0) > limit]


def _head(shown: Sequence[Estimate], plan: Plan, launch: Launch) -> list[str]:
    total = next((one.total for one in shown if one.total), 0)
    size = f": {total:,} parameters" if total else ""
    device = "on the CPU" if launch.use_cpu else "each with a GPU of its own"
    if launch.processes == 1:
        device = "on the CPU" if launch.use_cpu else "on a GPU"
    several = "es" if launch.processes > 1 else ""
    return [
        f"model   {plan.recipe.model}{size}",
        f"launch  {launch.path.stem}: {launch.processes} process{several} {device}; memory is that "
        "of one process, 1 GB = 10^9 bytes",
        *_precision_lines(shown),
    ]


def _precision_lines(shown: Sequence[Estimate]) -> list[str]:
    """What steps will compute in, and why; training apart where it differs."""
    found: dict[str, set[str]] = defaultdict(set)
    for one in shown:
        if one.precision:
            found["training" if one.step.kind == "train" else "reading"].add(one.precision.words)
    words = {kind: " or ".join(sorted(several)) for kind, several in found.items()}
    if len(set(words.values())) > 1:
        return [f"precision  {kind} in {precision}" for kind, precision in words.items()]
    return [f"precision  {precision}" for precision in set(words.values())]


def _row(number: int, one: Estimate, limit: float | None) -> list[str]:
    times = f" (x {one.times} seeds)" if one.times > 1 else ""
    memory = "" if one.bytes is None else f"{_gb(one.bytes)} GB"
    time = format_duration(one.seconds) if one.seconds else ""
    fits = [] if limit is None else [_fits(one, limit)]
    return [
        str(number),
        f"{one.step.stage}: {one.step.title}{times}",
        _count(one.trained) if one.trained else "",
        "?" if one.unknown else memory,
        *fits,
        _tokens(one),
        f"took {time}" if one.done and time else time,
    ]


def _fits(one: Estimate, limit: float) -> str:
    if one.done:
        return "done"
    if one.bytes is None:
        return "?" if one.unknown else ""
    return "yes" if one.bytes <= limit else "NO"


def _tokens(one: Estimate) -> str:
    """Its tokens in words; '~' where rows do not exist yet, or a sample was read."""
    work = one.work
    if one.done:
        count, word = work.timed
        return f"{count:,} {word}"
    about = "~" if work.assumes or work.sampled else ""
    most = "at most " if work.at_most else ""
    words = [
        f"{about}{work.trained:,} to train" if work.trained else "",
        f"{about}{work.read:,} to read" if work.read else "",
        f"{most}{about}{work.written:,} to write" if work.written else "",
    ]
    if work.trained and work.at_most:
        words[0] = f"{most}{words[0]}"
    return ", ".join(word for word in words if word)


def _format_part(memory: Memory) -> tuple[str, ...]:
    sizes = [getattr(memory, part) for part in _PARTS]
    return tuple(_gb(size) if size else "" for size in sizes)


def _notes(
    estimates: Sequence[Estimate],
    shown: Sequence[Estimate],
    launch: Launch,
    price_per_hour: tuple[float, str] | None,
) -> list[str]:
    """What the tables do not say."""
    notes = []
    hidden = sum(one.times for one in estimates) - sum(one.times for one in shown)
    if hidden:
        notes.append(f"{hidden} more steps compare, pair or grade rows and take little.")
    if launch.use_cpu:
        notes.append(
            f"On a CPU, Python and its libraries take about {LIBRARIES / GB:g} GB more; what "
            "finished steps measured holds them."
        )
    if any(one.work.assumes for one in shown):
        notes.append("~ rows that a stage writes itself are taken to be as long as the references.")
    if any(one.work.sampled for one in shown):
        notes.append("~ of long data, 5,000 rows were counted, and the longest.")
    notes += sorted({f"? {one.unknown}." for one in shown if one.unknown})
    optimizers = {
        str(one.step.options["trainer"].get("optim"))
        for one in shown
        if one.step.kind == "train" and "optim" in one.step.options["trainer"]
    }
    notes += [
        f"What {name} keeps is not known here; it is taken to be what AdamW keeps."
        for name in sorted(optimizers)
        if not known_optimizer(name)
    ]
    known = [one for one in shown if one.seconds and not one.done]
    unknown = [one for one in shown if not one.seconds and not one.done and one.work.timed[0]]
    if known:
        total = sum((one.seconds or 0) * one.times for one in known)
        price = _format_price(total, launch, price_per_hour)
        rest = sum(one.times for one in unknown)
        which = f", and {rest} more step{'s' if rest > 1 else ''} without a time" if rest else ""
        notes.append(f"time still to run: about {format_duration(total)}{price}{which}.")
    if unknown:
        notes.append(
            "No time where nothing like it has run with this model on this kind of device: give "
            "--tokens-per-second N, or run a few rows first (--set data.train.limit=64), which "
            "leaves its speed in the records."
        )
    return notes


def _format_price(seconds: float, launch: Launch, price_per_hour: tuple[float, str] | None) -> str:
    """Such as ', 26.7 GPU-hours, 66.75 EUR'; on a CPU hours are those of the machine."""
    hours = seconds / 3600 * (1 if launch.use_cpu else launch.processes)
    words = "" if launch.use_cpu else f", {hours:.1f} GPU-hours"
    if price_per_hour is None:
        return words
    price, currency = price_per_hour
    return f"{words}, {hours * price:,.2f} {currency}".rstrip()


def _verdict(shown: Sequence[Estimate], limit: float | None) -> list[str]:
    """Whether all fits, and what to do about each step that does not."""
    if limit is None:
        return []
    wrong = misfits(shown, limit)
    unknown = "" if not any(one.unknown for one in shown) else ", as far as known"
    if not wrong:
        return [f"fits {limit / GB:g} GB: all steps{unknown}"]
    alike: dict[str, list[str]] = defaultdict(list)
    for one in wrong:
        words = f"{_gb(one.bytes or 0)} GB; {_way_out(one, limit)}"
        alike[words].append(f"{one.step.stage}: {one.step.title}")
    lines = [f"does not fit {limit / GB:g} GB: {len(wrong)} of {len(shown)} steps{unknown}"]
    for words, names in alike.items():
        need, _, way = words.partition("; ")
        lines += [f"  {', '.join(names)}", f"    {need} needed; {way}"]
    return lines


def _way_out(one: Estimate, limit: float) -> str:
    """What lowers a step's memory, and by how much where that is known."""
    memory = one.memory
    assert memory is not None
    if one.step.kind != "train":
        rest = memory.total - memory.cache
        tokens = one.step.runtime_options["batch_tokens"]
        if memory.cache and rest < limit:
            fewer = int(tokens * (limit - rest) / memory.cache * 0.95)
            return f"generation.batch_tokens {fewer} (it is {tokens}; no result changes)"
        return "its weights alone take most of it; quantize: nf4, or a smaller model"
    ways = []
    if one.less is not None:
        noise = one.step.options["trainer"].get("neftune_noise_alpha")
        change = "NEFTune's noise changes with it" if noise else "no result changes"
        less = f"micro_batch_size 1 (now {one.rows}; {change}) makes it {_gb(one.less.total)} GB"
        if one.less.total <= limit:
            return less
        ways.append(f"{less}, which does not do alone")
    if one.step.options["lora"] is None:
        ways.insert(0, "lora trains an adapter in place of all weights")
    elif not one.step.options.get("quantize"):
        ways.insert(0, "quantize: nf4 keeps the base in 4 bits")
    else:
        ways.append("lower trainer.max_length, or take a smaller model")
    return "; ".join(ways)


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]
) -> list[str]:
    """Rows in columns; those named in `right` end together, the others begin together."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(head), "  ".join("-" * width for width in widths), *map(line, rows)]


def _gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= 9.95 * GB else f"{size / GB:.2f}"


def _count(number: int) -> str:
    """Parameters in short: 4.9 M, 7.24 B."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
