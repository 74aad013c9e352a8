"""A judge behind any OpenAI-compatible endpoint.

A label that is not among the listed log probabilities has probability 0, as in AlpacaEval 2's
published annotations; but only where the least likely listed token says that it would not have
mattered (1 %). Otherwise the reply is unparsed, as it is when neither label is listed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from eval.judge.template import Template
from eval.judge.types import Failure, Question, Reading, Record, Reply, sigmoid
from pipeline.errors import InputError
from pipeline.extras import require

KEY_VARIABLES = ("BASHRAC_JUDGE_KEY", "OPENAI_API_KEY")

# What a request must not hold: what is asked, how it is sent, and anything that could be a key.
_OURS = ("model", "messages", "n", "stream", "extra_headers", "extra_query", "extra_body")
_TOP_LOGPROBS = 20  # the most the protocol allows: with 5 a small judge often misses a label
_NEGLIGIBLE = 0.01
_MOST_TOKENS = 1 << 40  # that a server may count for one reply and be believed
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")


class OpenAIJudge:
    """A judge behind any OpenAI-compatible endpoint.

    The key comes from the environment (BASHRAC_JUDGE_KEY, else OPENAI_API_KEY) at the moment of
    asking and is kept nowhere; a server on this machine may need none.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        reads: str = "label",
        concurrency: int = 8,
        timeout_s: float = 60.0,
        max_retries: int = 5,
        give_up_after: int = 16,
        max_tokens: int = 256,
        request: Mapping[str, Any] | None = None,
    ):
        """Set up a judge; nothing is asked yet.

        Args:
            model: the name the endpoint knows the judge by.
            base_url: the endpoint, such as https://api.openai.com/v1.
            reads: 'label' for log probabilities of one token, 'text' for text replies.
            concurrency: most requests in flight.
            timeout_s: seconds without an answer after which a request is sent again.
            max_retries: how often a request is sent again after 408, 409, 429, 5xx, a time-out or
                a lost connection.
            give_up_after: failures in a row after which the rest is not asked.
            max_tokens: longest text reply.
            request: more fields of the request, part of the identity; None takes a field out.

        Raises:
            InputError: when the address is none, or holds a user, a password or a query.
        """
        try:
            parts = urlsplit(base_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError
        except ValueError:  # also http://[::1, or a port that is no number
            raise InputError(
                "the judge's base URL must look like https://api.openai.com/v1"
            ) from None
        if parts.username or parts.password or parts.query:
            raise InputError(
                "the judge's base URL must hold no user, password or query: a key is taken from "
                f"the environment only ({' or '.join(KEY_VARIABLES)})"
            )
        if reads not in ("label", "text"):
            raise InputError(f"reads is {reads!r}, valid are 'label' and 'text'")
        if concurrency < 1 or give_up_after < 1 or max_retries < 0 or timeout_s <= 0:
            raise InputError("concurrency, give_up_after and timeout_s must be above 0")
        self.model, self.base_url, self.reads = model, base_url.rstrip("/"), reads
        self.concurrency, self.give_up_after = concurrency, give_up_after
        self.timeout_s, self.max_retries = timeout_s, max_retries
        self._is_loopback = _LOOPBACK.fullmatch(parts.hostname) is not None
        if set(request or {}) & set(_OURS):
            raise InputError(
                f"judge.request must not hold {', '.join(_OURS)}: bashrac sets these, and keys "
                "come from the environment only"
            )
        label = {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        fields = label if reads == "label" else {"max_tokens": max_tokens}
        merged = {"temperature": 0.0, **fields, **(request or {})}
        self._fields = {name: value for name, value in merged.items() if value is not None}

    keeps_labels_only = False

    def identity(self) -> dict[str, Any]:
        """Model, endpoint and what is asked of it."""
        return {
            "engine": "openai",
            "model": self.model,
            "base_url": self.base_url,
            "request": self._fields,
        }

    def ask(self, questions: Sequence[Question], template: Template, record: Record) -> None:
        """Ask with at most `concurrency` requests in flight; see `Engine`.

        Raises:
            InputError: when there is no key and the endpoint is not on this machine, or openai is
                not installed.
        """
        key = self.key()
        _run_to_end(self._ask_all(questions, template, record, key))

    def key(self) -> str | None:
        """Return the key, None for a server on this machine that may need none.

        Raises:
            InputError: when a remote endpoint has none, it cannot be one, or what would send it is
                not installed.
        """
        require("openai", f"the judge at {self.base_url}")
        key = _key_from_environment()
        if key is None and not self._is_loopback:
            raise InputError(
                f"the judge at {self.base_url} needs a key: set {' or '.join(KEY_VARIABLES)} in "
                "the environment; only a server on this machine may need none"
            )
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InputError(
                "the judge's key holds a character that no key has, such as a typographic quote; "
                f"set {' or '.join(KEY_VARIABLES)} again"
            )
        return key

    def read(self, reply: Reply, template: Template) -> Reading:
        """Read log probabilities or text, whichever this judge asks for."""
        if self.reads == "text":
            return template.read_text(reply["text"])
        return read_logprobs(reply["top_logprobs"], template.labels)

    async def _ask_all(
        self, questions: Sequence[Question], template: Template, record: Record, key: str | None
    ) -> None:
        import openai

        waiting = iter(questions)
        failed_in_a_row = 0
        last_reason = ""

        async def work(client: openai.AsyncOpenAI) -> None:
            nonlocal failed_in_a_row, last_reason
            for question in waiting:  # shared: every worker takes the next one
                if failed_in_a_row >= self.give_up_after:
                    gave_up = f"not asked after {failed_in_a_row} failures in a row: {last_reason}"
                    record(question, Failure(gave_up, asked=False))
                    continue
                answer = await self._ask_one(client, template.messages(question, self.reads))
                if isinstance(answer, Failure):
                    failed_in_a_row, last_reason = failed_in_a_row + 1, answer.reason
                else:
                    failed_in_a_row = 0
                record(question, answer)

        async with openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=self.base_url,
            timeout=self.timeout_s,
            max_retries=self.max_retries,
        ) as client:
            workers = min(self.concurrency, len(questions))
            await asyncio.gather(*(work(client) for _ in range(workers)))

    async def _ask_one(self, client: Any, messages: list[dict[str, str]]) -> Reply | Failure:
        import openai

        try:
            response = await client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, extra_body=self._fields
            )
        except openai.APIStatusError as error:
            message = error.message.removeprefix(f"Error code: {error.status_code} - ")
            return Failure(_without_key(f"HTTP {error.status_code}: {message}")[:500])
        except openai.OpenAIError as error:
            where = f"{type(error).__name__} at {self.base_url}: {error}"
            return Failure(_without_key(where)[:500])
        except UnicodeEncodeError:
            return Failure("the question is not valid Unicode and cannot be sent")
        try:
            body = json.loads(response.content)
        except (ValueError, RecursionError):
            return Failure("the server's answer is not JSON")
        return _openai_reply(body, wants_logprobs=self.reads == "label")


def read_logprobs(top: Sequence[tuple[str, float]], labels: tuple[str, str]) -> Reading:
    """Return the second label's share of the probability of both.

    Args:
        top: the likeliest tokens with their log probabilities.
        labels: the tokens that stand for the first and for the second answer.
    """
    known: dict[str, float] = {}
    for token, logprob in top:
        known.setdefault(token, logprob)
    listed = [known[label] for label in labels if label in known]
    if not listed:
        return Reading(None, f"neither label is among the {len(known)} likeliest tokens")
    if len(listed) == 2:
        return Reading(sigmoid(known[labels[1]] - known[labels[0]]))
    if sigmoid(min(known.values()) - listed[0]) > _NEGLIGIBLE:
        return Reading(
            None, f"one label is not among the {len(known)} likeliest tokens, the other is unlikely"
        )
    return Reading(float(labels[1] in known))


def _openai_reply(body: Any, *, wants_logprobs: bool) -> Reply | Failure:
    """Take what is kept of a chat completion, or say what it lacks."""
    choice = _at(body, "choices", 0)
    if not isinstance(_at(choice, "message"), dict):
        return Failure("the server's answer holds no message (choices[0].message)")
    text = _at(choice, "message", "content")
    usage = {
        name: count
        for name in ("prompt_tokens", "completion_tokens")
        if type(count := _at(body, "usage", name)) is int and 0 <= count < _MOST_TOKENS
    }
    if not wants_logprobs:
        if not isinstance(text, str):
            return Failure("the server's answer holds no text (choices[0].message.content)")
        return {"text": _without_key(text), "usage": usage}
    top = _at(choice, "logprobs", "content", 0, "top_logprobs")
    if not top:
        return Failure(
            "the server ignored logprobs: use one that returns them, or judge.reads: text"
        )
    entries = top if isinstance(top, list) else [None]
    pairs = [(_at(entry, "token"), _at(entry, "logprob")) for entry in entries]
    if not all(_is_logprob(token, logprob) for token, logprob in pairs):
        return Failure("the server's logprobs are malformed (choices[0].logprobs.content[0])")
    kept = [[_without_key(token), float(logprob)] for token, logprob in pairs]
    return {"top_logprobs": kept, "usage": usage}


def _at(value: Any, *path: str | int) -> Any:
    """Follow a path into parsed JSON; None where it does not lead."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _is_logprob(token: Any, logprob: Any) -> bool:
    """A token with a log probability: a finite number, at most 0 but for rounding."""
    is_number = isinstance(logprob, (int, float)) and not isinstance(logprob, bool)
    return isinstance(token, str) and is_number and -1e300 < logprob < 1e-3


def _key_from_environment() -> str | None:
    keys = (os.environ.get(name, "").strip() for name in KEY_VARIABLES)
    return next((key for key in keys if key), None)


def _without_key(text: str) -> str:
    """Take the key out of what a server says: it may repeat what it was sent."""
    key = _key_from_environment()
    return text if key is None else text.replace(key, "[key]")


def _run_to_end(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine, in a thread of its own where a loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, main).result()
