"""Parses chat completions: what we store of them, and verdicts from log probabilities.

Decisions: (1) probabilities of a label's variants (`plain_by`) are summed; (2) there is no verdict
if both labels together have less than half of the probability: the judge is about to refuse, or to
reason first; (3) a label that is not listed has probability 0, as in AlpacaEval 2's published
annotations, but only if the listed tokens show that it could not have mattered (1 %): it is less
likely than the last of them, and than all that they leave over. A confident reply of some models
lists one token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from eval.judge.types import ORIGIN, Failure, Reading, Reply, plain_by, reading_of, sigmoid

CUT = "length"  # the finish reason of a reply that ran into its token limit
_FILTERED = ("content_filter", "safety", "recitation")
_NEGLIGIBLE = 0.01
_MOST_TOKENS = 1 << 40  # a larger count reported for one reply is not credible
# Where the tokens of a reply are counted; reasoning is part of what was written.
_USAGE = (
    ("prompt_tokens",),
    ("completion_tokens",),
    ("completion_tokens_details", "reasoning_tokens"),
)
_NO_PROBABILITY = -9999.0  # replaces -Infinity, which JSON does not have
# Snapshots: gpt-4.1-2025-04-14, gpt-4-0613, mistral-large-latest, llama3:latest, name@revision.
_SNAPSHOT = re.compile(r"(-\d{4}-\d\d-\d\d|-\d{3,4}|-\d{6}|-\d{8}|-latest|:latest|:free|@[\w.-]+)$")


def reply_of(body: Any, *, wants_logprobs: bool, model: str | None = None) -> Reply | Failure:
    """Extract what we store of a chat completion, or say what is missing.

    Args:
        body: the completion, as parsed from JSON.
        wants_logprobs: whether to extract log probabilities, else the text. A text that was cut is
            returned with the finish reason `CUT`; the caller has to ask again.
        model: the model that was asked; a reply from another one is a failure.
    """
    choice = _at(body, "choices", 0)
    message, finish_reason = _at(choice, "message"), _at(choice, "finish_reason")
    if not isinstance(message, dict):
        return Failure("the server's response has no message (choices[0].message)")
    served = _at(body, "model")
    if model is not None and isinstance(served, str) and not is_same_model(model, served):
        return Failure(
            f"the reply is from {served}, but {model} was asked: if the endpoint serves that model "
            f"under this name, write judge.served_model: {served}"
        )
    if str(finish_reason).casefold() in _FILTERED:
        return Failure(f"the server withheld the reply (finish_reason {finish_reason})")
    reply: Reply = {}
    said = (served, finish_reason, _at(body, "system_fingerprint"))
    for name, value in zip(ORIGIN, said, strict=True):
        if isinstance(value, str):
            reply[name] = value
    reply["usage"] = {
        path[-1]: count
        for path in _USAGE
        if type(count := _at(body, "usage", *path)) is int and 0 <= count < _MOST_TOKENS
    }
    if wants_logprobs:
        kept = _logprobs(_at(choice, "logprobs", "content", 0, "top_logprobs"))
        return kept if isinstance(kept, Failure) else {**reply, "top_logprobs": kept}
    text = _text(message)
    if text is None and finish_reason != CUT:
        return Failure("the server's response has no text (choices[0].message.content)")
    return {**reply, "text": text or ""}


def is_same_model(asked: str, served: str) -> bool:
    """Whether two names are of one model; folders, tags and the date of one are ignored."""
    asked, served = (name.rsplit("/", 1)[-1].casefold() for name in (asked, served))
    if asked == served or asked in (short := _SNAPSHOT.sub("", served), served):
        return True
    family = _SNAPSHOT.sub("", asked)
    return family == served or (asked.endswith("latest") and family == short)


def read_logprobs(top: Sequence[Sequence[Any]], labels: tuple[str, str]) -> Reading:
    """Return the second label's share of the probability of both.

    Args:
        top: the likeliest tokens with their log probabilities, None if the server gave none.
        labels: the labels of the first and of the second answer.
    """
    known: dict[str, float | None] = {}
    for token, logprob in top:
        known.setdefault(token, logprob)
    numbers = [logprob for logprob in known.values() if logprob is not None]
    plain = plain_by(labels)
    found: list[float | None] = []
    for label in labels:
        variants = [known[token] for token in known if plain(token) == plain(label)]
        if None in variants:
            return Reading(None, f"the server gave no log probability for the label {label!r}")
        found.append(_log_sum([number for number in variants if number is not None]))
    listed = [number for number in found if number is not None]
    if not listed:
        return Reading(None, f"neither label is among the {len(known)} likeliest tokens", 0.0)
    first, second = (-math.inf if number is None else number for number in found)
    reading = reading_of(first, second)
    left_over = 1.0 - math.fsum(map(math.exp, numbers))
    most = min(min(numbers), math.log(left_over) if left_over > 0 else -math.inf)
    if len(listed) == 1 and sigmoid(most - listed[0]) > _NEGLIGIBLE:
        reason = f"one label is not among the {len(known)} likeliest tokens, and might matter"
        return Reading(None, reading.reason or reason, reading.label_mass)
    return reading


def _log_sum(numbers: list[float]) -> float | None:
    """Log-sum-exp; exact for one number, None for an empty list."""
    if len(numbers) < 2:
        return numbers[0] if numbers else None
    most = max(numbers)
    return most + math.log(math.fsum(math.exp(number - most) for number in numbers))


def _logprobs(top: Any) -> list[list[Any]] | Failure:
    """The listed tokens with their log probabilities, None if the server gave none."""
    if not top:
        return Failure(
            "the server ignored logprobs: use one that returns them, or judge.reads: text"
        )
    kept = []
    for entry in top if isinstance(top, list) else [None]:
        token, logprob = _at(entry, "token"), _at(entry, "logprob")
        if logprob == -math.inf:
            logprob = _NO_PROBABILITY
        if not isinstance(token, str) or not (logprob is None or _is_logprob(logprob)):
            break
        kept.append([token, None if logprob is None else float(logprob)])
    else:
        if any(logprob is not None for _, logprob in kept):
            return kept
    return Failure("the server's logprobs are malformed (choices[0].logprobs.content[0])")


def _is_logprob(logprob: Any) -> bool:
    """Whether this is a finite number, at most 0 up to rounding."""
    is_number = isinstance(logprob, (int, float)) and not isinstance(logprob, bool)
    return is_number and -1e300 < logprob < 1e-3


def _text(message: Any) -> str | None:
    """The text of a message: its content, or its text parts without reasoning, or its refusal."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [_at(part, "text") for part in content if _at(part, "type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    texts = (content, message.get("refusal"))
    return next((text for text in texts if isinstance(text, str)), None)


def _at(value: Any, *path: str | int) -> Any:
    """Follow a path into parsed JSON; None if it does not exist."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value
