"""A judge behind any OpenAI-compatible endpoint.

Decisions: (1) a text reply that was cut is requested again with more tokens, because a verdict
quoted in the middle of reasoning does not count; (2) `max_tokens`, `temperature` and `top_p`, which
some model families refuse, are renamed or left out once a server says so, and each reply records
it; (3) `logprobs` is never left out, because without it there is no verdict; (4) a judge that
reasons is sent no temperature, since such models refuse it, and a limit with room for reasoning
(`REASONING_TOKENS`), which is doubled up to `MOST_REASONING_TOKENS` when a reply is cut. How much
effort it makes is the server's default unless `request` says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

from eval.judge.replies import CUT, read_logprobs, reply_of
from eval.judge.template import Template
from eval.judge.types import ORIGIN, Failure, Origin, Question, Reading, Record, Reply
from pipeline.errors import InputError
from pipeline.extras import require

KEY_VARIABLES = ("BASHRAC_JUDGE_KEY", "OPENAI_API_KEY")

# Fields that judge.request must not set: those that we set, and those that could carry a key.
_OURS = ("model", "messages", "n", "stream", "extra_headers", "extra_query", "extra_body")
_TOP_LOGPROBS = 20  # the most that the protocol allows; with 5 a small judge often misses a label
_MORE_TOKENS = (1024, 4096, 16384)  # limits to try in turn after a text was cut
# The same for a judge that reasons: the first limit, and where doubling it ends.
REASONING_TOKENS, MOST_REASONING_TOKENS = 4096, 32768
_REASONING_TIMEOUT_S = 600.0  # a reply arrives as a whole, and reasoning takes minutes
_LIMITS = ("max_tokens", "max_completion_tokens")
# What to do with a field that a server refuses: its new name, or None to leave it out.
_CHANGES = {"max_tokens": "max_completion_tokens", "temperature": None, "top_p": None}
_REASONING_CHANGES = {**_CHANGES, "max_completion_tokens": "max_tokens"}  # for older servers
_FOR_LABELS = ("logprobs", "top_logprobs")
_REFUSAL = re.compile(
    r"unsupported|not support|not permitted|not allowed|unrecognized|unknown|unexpected|deprecated|"
    r"not available|cannot both",
    re.IGNORECASE,
)
_ADDED_PATH = re.compile(r"/(chat/completions|completions|responses|messages)$")
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")


class OpenAIJudge:
    """A judge behind any OpenAI-compatible endpoint.

    The key is read from the environment (BASHRAC_JUDGE_KEY, else OPENAI_API_KEY) just before asking
    and is stored nowhere; a server on this machine may need none.
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
        served_model: str | None = None,
        reasoning: bool = False,
    ):
        """Set up a judge; nothing is asked yet.

        Args:
            model: the judge's name at the endpoint.
            base_url: the endpoint, such as https://api.openai.com/v1.
            reads: 'label' for log probabilities of one token, 'text' for text replies.
            concurrency: most requests in flight.
            timeout_s: seconds without a response after which a request is retried.
            max_retries: how often a request is retried after 408, 409, 429, 5xx, a time-out or a
                lost connection.
            give_up_after: failures in a row after which the rest is not asked.
            max_tokens: token limit of a text reply at first; raised if a reply is cut, unless
                `request` sets a limit.
            request: more fields of the request, part of the identity; None removes a field.
            served_model: the model's name in the endpoint's replies, if it differs.
            reasoning: whether the model reasons before it answers (decision 4); needs `reads`
                'text'. `max_tokens` does not count then.

        Raises:
            InputError: if the base URL is invalid, or has a user, a password, a query or the path
                of a request, or the request has fields that this judge cannot use.
        """
        if reads not in ("label", "text"):
            raise InputError(f"reads is {reads!r}, valid are 'label' and 'text'")
        if concurrency < 1 or give_up_after < 1 or max_retries < 0 or timeout_s <= 0:
            raise InputError("concurrency, give_up_after and timeout_s must be above 0")
        self.base_url, hostname = _checked_address(base_url)
        self.model, self.reads = model, reads
        self.served_model = served_model or model
        self.concurrency, self.give_up_after = concurrency, give_up_after
        self.timeout_s, self.max_retries = timeout_s, max_retries
        self._is_loopback = _LOOPBACK.fullmatch(hostname) is not None
        if set(request or {}) & set(_OURS):
            raise InputError(
                f"judge.request must not set {', '.join(_OURS)}: bashrac sets these, and keys come "
                "from the environment only"
            )
        given = dict(request or {})
        self.reasoning = reasoning
        if reasoning:
            _check_reasoning(reads, given)
            self.timeout_s = max(timeout_s, _REASONING_TIMEOUT_S)
        has_limit = any(given.get(name) is not None for name in _LIMITS)
        label = {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        fields: dict[str, Any] = label if reads == "label" else {"max_tokens": max_tokens}
        if given.get("max_completion_tokens") is not None:
            del fields["max_tokens"]
        merged = {"temperature": 0.0, **fields, **given}
        if reasoning:
            merged = {"max_completion_tokens": REASONING_TOKENS, **given}
        self._fields = {name: value for name, value in merged.items() if value is not None}
        # What is actually sent: the fields above, without those that the server has refused.
        self._sent = dict(self._fields)
        self._changes: dict[str, str | None] = {}
        self._more_tokens = [] if has_limit or reads == "label" else [*_MORE_TOKENS]
        if reasoning:
            self._more_tokens = _doubled(self._fields["max_completion_tokens"])

    keeps_labels_only = False

    def identity(self) -> dict[str, Any]:
        """Model, endpoint and request fields."""
        return {
            "engine": "openai",
            "model": self.model,
            "base_url": self.base_url,
            "request": self._fields,
            # Version 1 did not record whether a text was cut, so its replies are not reused.
            **({"replies": 2} if self.reads == "text" else {}),
            **({"reasoning": True} if self.reasoning else {}),
        }

    def ask(self, questions: Sequence[Question], template: Template, record: Record) -> None:
        """Ask with at most `concurrency` requests in flight; see `Engine`.

        Raises:
            InputError: if there is no key and the endpoint is not on this machine, or openai is not
                installed.
        """
        key = self.key()
        _run_to_end(self._ask_all(questions, template, record, key))

    def key(self) -> str | None:
        """Return the key, or None for a server on this machine that may need none.

        Raises:
            InputError: if there is no key for a remote endpoint, the key is malformed, or openai is
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
                "the judge's key has a character that keys never have, such as a typographic "
                f"quote; set {' or '.join(KEY_VARIABLES)} again"
            )
        return key

    def read(self, reply: Reply, template: Template) -> Reading:
        """Read log probabilities or text, whichever this judge uses."""
        if self.reads == "text":
            assert "text" in reply
            return template.read_text(reply["text"])
        assert "top_logprobs" in reply
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
        """Return a complete reply; its usage includes replies that were cut."""
        usage: Counter[str] = Counter()
        cut = ""
        while True:
            body, sent = await self._post(client, messages)
            if isinstance(body, Failure):
                return body._replace(reason=cut + body.reason)
            wants_logprobs = self.reads == "label"
            reply = reply_of(body, wants_logprobs=wants_logprobs, model=self.served_model)
            if isinstance(reply, Failure):
                return reply._replace(reason=_without_key(reply.reason)[:500])
            usage.update(reply.get("usage", {}))
            if wants_logprobs or reply.get("finish_reason") != CUT:
                reply["usage"] = dict(usage)
                if self._changes:
                    reply["request_changes"] = dict(self._changes)
                return _reply_without_key(reply)
            cut = f"the reply was cut at {_limit_of(sent)} tokens; "
            if not self._raise_limit(sent):
                name = "max_completion_tokens" if self.reasoning else "max_tokens"
                return Failure(f"{cut}allow more with judge.request: {{{name}: N}}")

    async def _post(
        self, client: Any, messages: list[dict[str, str]]
    ) -> tuple[Any, Mapping[str, Any]]:
        """Return the parsed body of a response, or a failure, and the fields that were sent.

        If the server refuses a field, it is renamed or left out, and the question is sent again.

        Raises:
            InputError: if the server refuses log probabilities.
        """
        import openai

        while True:
            sent = self._sent
            try:
                response = await client.chat.completions.with_raw_response.create(
                    model=self.model, messages=messages, extra_body=sent
                )
                break
            except openai.APIStatusError as error:
                if not self._change_refused(error, sent):
                    return Failure(self._describe(error)), sent
            except openai.OpenAIError as error:
                where = f"{type(error).__name__} at {self.base_url}: {error}"
                return Failure(_without_key(where)[:500]), sent
            except UnicodeEncodeError:
                return Failure("the question is not valid Unicode and cannot be sent"), sent
        try:
            return json.loads(response.content), sent
        except (ValueError, RecursionError):
            return Failure(f"the server's answer is not JSON{self._suggest_address()}"), sent

    def _raise_limit(self, sent: Mapping[str, Any]) -> bool:
        """Raise the token limit for all further requests; False if there is no larger one."""
        if sent is not self._sent:
            return True
        larger = [limit for limit in self._more_tokens if limit > (_limit_of(sent) or 0)]
        if not larger:
            return False
        name = next((name for name in _LIMITS if name in sent), "max_tokens")
        self._sent = {**sent, name: larger[0]}
        return True

    def _change_refused(self, error: Any, sent: Mapping[str, Any]) -> bool:
        """Rename or drop the field that the server refuses; False if the error is another one."""
        if sent is not self._sent:
            return True  # another request has already changed it
        changes = _REASONING_CHANGES if self.reasoning else _CHANGES
        name = _refused_field(error, sent, changes)
        if name in _FOR_LABELS:
            raise InputError(
                f"{self.model} at {self.base_url} does not return log probabilities "
                f"({self._describe(error)}): write judge.reads: text, with a template that has a "
                "text_request, or use another judge"
            )
        if name is None or (other := changes[name]) in self._changes:
            return False  # of another matter, or of the name that was already refused
        kept = {key: value for key, value in sent.items() if key != name}
        self._sent = kept if other is None else {**kept, other: sent[name]}
        self._changes[name] = other
        return True

    def _describe(self, error: Any) -> str:
        """The server's error message without the key, and a hint if the base URL may be wrong."""
        message = _message_of(error)
        said = _without_key(f"HTTP {error.status_code}: {message}")[:500]
        is_address = error.status_code in (404, 405) and "model" not in message.lower()
        return said + (self._suggest_address() if is_address else "")

    def _suggest_address(self) -> str:
        if re.search(r"/v\d", self.base_url):
            return f" (asked at {self.base_url}/chat/completions: is judge.base_url right?)"
        return (
            f" (asked at {self.base_url}/chat/completions: most endpoints end in /v1, so try "
            f"judge.base_url: {self.base_url}/v1)"
        )


def _checked_address(base_url: str) -> tuple[str, str]:
    """Return the base URL without a trailing slash, and its host name."""
    try:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:  # also http://[::1, or a port that is not a number
        raise InputError("the judge's base URL must look like https://api.openai.com/v1") from None
    if parts.username or parts.password or parts.query:
        raise InputError(
            "the judge's base URL must not contain a user, password or query: the key is read from "
            f"the environment only ({' or '.join(KEY_VARIABLES)})"
        )
    base_url = base_url.rstrip("/")
    if added := _ADDED_PATH.search(base_url):
        raise InputError(
            f"the judge's base URL must end before {added[0]}, which each request adds: write "
            f"{base_url.removesuffix(added[0])}"
        )
    return base_url, parts.hostname


def _check_reasoning(reads: str, request: Mapping[str, Any]) -> None:
    """Refuse what a judge that reasons cannot do.

    Raises:
        InputError: if it is to be read by labels, or its limit is not one for reasoning.
    """
    if reads == "label":
        raise InputError(
            "a judge that reasons gives no log probabilities of a label, which would come before "
            "its reasoning: remove reads: label, or reasoning: true"
        )
    if found := [name for name in _FOR_LABELS if request.get(name) is not None]:
        raise InputError(
            f"judge.request has {' and '.join(found)}, and a judge that reasons is read by its "
            "text: take it out"
        )
    if "max_tokens" in request:
        raise InputError(
            "judge.request has max_tokens: with reasoning: true write max_completion_tokens, which "
            "counts the reasoning too"
        )
    limit = request.get("max_completion_tokens", REASONING_TOKENS)
    if type(limit) is not int or limit < 1:
        raise InputError(
            f"judge.request.max_completion_tokens is {limit!r}, and should be a whole number: it "
            f"has to leave room for reasoning ({REASONING_TOKENS} if it is left out)"
        )


def _doubled(limit: int) -> list[int]:
    """The limits to try in turn after this one."""
    limits = []
    while limit < MOST_REASONING_TOKENS:
        limit = min(2 * limit, MOST_REASONING_TOKENS)
        limits.append(limit)
    return limits


def _limit_of(sent: Mapping[str, Any]) -> int | None:
    return next((sent[name] for name in _LIMITS if name in sent), None)


def _message_of(error: Any) -> str:
    """The server's error message; the client only finds it where OpenAI would put it."""
    if isinstance(error.body, dict) and "message" not in error.body:
        return json.dumps(error.body)
    return error.message.removeprefix(f"Error code: {error.status_code} - ")


def _refused_field(
    error: Any, sent: Mapping[str, Any], changes: dict[str, str | None]
) -> str | None:
    """The field that the server's error message refuses, if any."""
    message = _message_of(error)
    if error.status_code not in (400, 403, 422) or not _REFUSAL.search(message):
        return None
    names = [name for name in (*_FOR_LABELS, *reversed(changes)) if name in sent]
    if error.param in names:
        return error.param
    return next((name for name in names if re.search(rf"\b{name}\b", message)), None)


def _key_from_environment() -> str | None:
    keys = (os.environ.get(name, "").strip() for name in KEY_VARIABLES)
    return next((key for key in keys if key), None)


def _without_key(text: str) -> str:
    """Remove the key from a server's message, which may repeat what it was sent."""
    key = _key_from_environment()
    return text if key is None else text.replace(key, "[key]")


def _reply_without_key(reply: Reply) -> Reply:
    texts: tuple[Origin | Literal["text"], ...] = (*ORIGIN, "text")
    for name in texts:
        if (said := reply.get(name)) is not None:
            reply[name] = _without_key(said)
    for pair in reply.get("top_logprobs", []):
        pair[0] = _without_key(pair[0])
    return reply


def _run_to_end(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine, in a separate thread if a loop is already running (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, main).result()
