"""What judging takes: the memory of a judge in process, its speed, and the cost of an endpoint.

A judge's tokens are counted with the tokenizer of the recipe's model, and four characters of the
judge's template as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.judge.cache import ReplyCache
from eval.judge.compare import CHARACTERS_PER_TOKEN, reply_tokens
from eval.judge.step import describe_judge, engine_for, replies_file
from pipeline.recipe.schema import Judge
from pipeline.steps import artifact
from pipeline.steps.artifact import fingerprint
from pipeline.steps.spec import StepSpec

if TYPE_CHECKING:
    from pipeline.estimate.step import Estimate


def engine_of(step: StepSpec) -> str | None:
    """The engine of the judge that a step asks: 'openai', 'local', 'reference' or None."""
    judge = step.options.get("judge")
    return judge["engine"] if isinstance(judge, dict) else None


def orders_of(step: StepSpec) -> int:
    """How often a step asks about each pair of answers."""
    return 2 if step.options["orders"] == "both" else 1


def template_tokens(step: StepSpec) -> int:
    """Tokens of a judge's prompt without the texts that it compares."""
    template = step.options["template"] or {}
    request = template.get(f"{step.options['reads']}_request")
    texts = (template.get("system"), template.get("prompt"), request)
    return sum(map(len, filter(None, texts))) // CHARACTERS_PER_TOKEN


def judge_rate(runs: Path, step: StepSpec, *, use_cpu: bool) -> float:
    """Tokens per second that a judge has read in finished steps, or 0."""
    tokens = seconds = 0.0
    for record in artifact.finished_records(runs).values():
        count = record["metrics"].get("tokens_read")
        same = record["identity"]["options"].get("judge") == step.options.get("judge")
        if count and same and record["device"].startswith("cpu") == use_cpu:
            tokens += count
            seconds += record["seconds"]
    return tokens / seconds if seconds else 0.0


@dataclass
class _Asked:
    """What an endpoint will be asked by all steps of a plan."""

    settings: Judge
    replies: Sequence[Any]
    calls: int = 0
    read: int = 0


def endpoint_notes(estimates: Sequence[Estimate], runs: Path) -> Iterator[str]:
    """How many tokens each endpoint will be sent and will write, and what that costs."""
    found: dict[str, _Asked] = {}
    for one in estimates:
        if one.done or engine_of(one.step) != "openai":
            continue
        judge = one.step.options["judge"]
        key = fingerprint(judge)
        if key not in found:
            settings = Judge.model_validate(one.step.runtime_options["judge"])
            replies = list(ReplyCache(replies_file(runs, judge)).replies.values())
            found[key] = _Asked(settings, replies)
        found[key].calls += one.work.rows * one.times
        found[key].read += one.work.read * one.times
    for asked in found.values():
        yield _describe(asked)


def _describe(asked: _Asked) -> str:
    settings = asked.settings
    each = reply_tokens(engine_for(settings), asked.replies)
    written = round(asked.calls * each)
    words = (
        f"judge {describe_judge(settings)}: at most ~{asked.calls:,} calls, ~{asked.read:,} tokens "
        f"to read and ~{written:,} to write"
    )
    if settings.reasoning:
        measured = any(reply.get("usage", {}).get("completion_tokens") for reply in asked.replies)
        source = "the mean of its replies so far" if measured else "an assumption, none is measured"
        words += f" ({each:,.0f} a reply with its reasoning: {source})"
    if settings.price is not None:
        words += f", cost {settings.price.of(asked.calls, asked.read, written):,.2f}"
    return f"{words}."
