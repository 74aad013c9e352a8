"""What a task's rows look like, and how a row becomes a prompt and a reference answer.

`Example.messages` is what the user says; `Example.plain_prompt` is the same for a model without a
chat template. `pipeline.data.render` turns either into tokens, in one place for training,
generation and evaluation.

Decisions: (1) where the model is shown the reference (RAC), the reference stands before the prompt,
so that the prompt ends as it does in training, and with its end-of-turn token, so that the model
sees that the answer ends there; (2) a post that is too long is cut at a line end, a first paragraph
that is too long by itself between words, and the prompt keeps its last line; of a dialogue that is
too long the oldest turns go; a question is never cut; (3) a post is written the same wherever it
comes from: the prompts of preferences take the form that rows with fields are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

Messages = list[dict[str, str]]
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can write one, no tokenizer can read it

# The last user message where the model is shown the reference (RAC), for labels token by token.
SHOWN_PROMPTS = {
    "gsm8k": "A correct solution of the problem below:\n{reference}{end}\n\n{prompt}",
    "tldr": "A good summary of the post below:\n{reference}{end}\n\n{prompt}",
    "chat": "A good reply to the message below:\n{reference}{end}\n\n{prompt}",
}
# The same where the model rewrites its whole answer.
REWRITE_PROMPTS = {
    "gsm8k": "A correct solution of the problem below:\n{reference}{end}\n\n"
    "An attempt to correct:\n{answer}\n\n{prompt}",
    "tldr": "A good summary of the post below:\n{reference}{end}\n\n"
    "A summary to correct:\n{answer}\n\n{prompt}",
    "chat": "A good reply to the message below:\n{reference}{end}\n\n"
    "A reply to correct:\n{answer}\n\n{prompt}",
}


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        task: gsm8k, tldr or chat (AlpacaEval's instructions are chat).
        messages: the prompt as chat messages, ending with the user's turn.
        reference: the reference answer, without any leading space or end token.
        plain_separator: what stands between plain prompt and answer.
        shots: solved examples before a plain prompt (see `with_shots`).
    """

    task: str
    messages: Messages
    reference: str
    plain_separator: str = " "
    shots: str = ""

    @property
    def plain_prompt(self) -> str:
        """The prompt for a model without a chat template."""
        if len(self.messages) == 1 and self.task == "gsm8k":
            return f"{self.shots}Question: {self.messages[0]['content']}\nAnswer:"
        if len(self.messages) == 1 and self.task == "tldr":
            return self.messages[0]["content"]
        names = {"system": "System", "user": "Human", "assistant": "Assistant"}
        lines = [f"{names[message['role']]}: {message['content']}" for message in self.messages]
        return "\n\n".join([*lines, "Assistant:"])

    def with_last_message(self, content: str) -> Example:
        """The same example with another text in the user's last message."""
        last = {**self.messages[-1], "content": content}
        return replace(self, messages=[*self.messages[:-1], last])

    def with_shots(self, solved: Sequence[Example]) -> Example:
        """The example with solved ones before it in its plain prompt, in lm-eval's format."""
        texts = [f"{one.plain_prompt}{one.plain_separator}{one.reference}" for one in solved]
        return replace(self, shots="".join(f"{text}\n\n" for text in texts))

    def shown(self, template: str, *, answer: str = "", end: str = "") -> Example:
        """The example with the reference, and perhaps the model's own answer, in its prompt.

        `template` is the last user message, with `{prompt}`, `{reference}`, `{answer}` and `{end}`
        (the end-of-turn token) in it.
        """
        texts = {
            "prompt": self.messages[-1]["content"],
            "reference": self.reference,
            "answer": answer,
            "end": end,
        }
        return self.with_last_message(
            re.sub(r"\{(prompt|reference|answer|end)\}", lambda found: texts[found[1]], template)
        )

    def shorter(self) -> list[Callable[[], Example]]:
        """Ever longer cuts of a prompt that is too long (decision 2); none for a question.

        Each is made when it is called: all cuts of a long post do not fit into memory.
        """
        if self.task == "chat":
            turns = [i for i, message in enumerate(self.messages) if message["role"] == "user"][1:]
            system = [message for message in self.messages[:1] if message["role"] == "system"]
            return [partial(self._from_turn, system, turn) for turn in reversed(turns)]
        text = self.messages[-1]["content"]
        before = text.rstrip().removesuffix("TL;DR:")
        body, mark = before.rstrip(), text[len(before.rstrip()) :]
        if self.task != "tldr" or not mark.strip() or len(body) == len(before):
            return []
        frame = re.search(r"\nPOST:\s", body)
        start = frame.end() if frame else 0
        lines = [found.start() for found in re.finditer(r"\n", body) if found.start() > start]
        first_line = body[: lines[0]] if lines else body
        words = [at.start() for at in re.finditer(r" ", first_line) if at.start() > start]
        return [partial(self._with_post, body, place, mark) for place in [*words, *lines]]

    def _from_turn(self, system: Messages, turn: int) -> Example:
        return replace(self, messages=system + self.messages[turn:])

    def _with_post(self, body: str, end: int, mark: str) -> Example:
        return self.with_last_message(body[:end].rstrip() + mark)


def with_system(messages: Messages, system: str | None) -> Messages:
    """The messages with a system message first, where there is one and they have none."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a better and a worse answer."""

    example: Example
    chosen: str
    rejected: str


class RowError(ValueError):
    """A row that does not have the task's fields. `field` names the one that is wrong."""

    def __init__(self, field: str, message: str):
        self.field = field
        super().__init__(message)


def example_of(task: str, row: Mapping[str, Any]) -> Example:
    """Read one row of a task.

    Raises:
        RowError: when a field is missing, empty or of the wrong type.
    """
    messages, reference = _READERS[task](row)
    return Example("chat" if task == "alpaca" else task, messages, reference)


def preference_of(task: str, row: Mapping[str, Any]) -> PreferencePair:
    """Read one `prompt/chosen/rejected` row, conversational or plain text.

    Raises:
        RowError: as `example_of`; also when chosen equals rejected.
    """
    messages = _prompt(row)
    chosen, rejected = _answer("chosen", row, messages), _answer("rejected", row, messages)
    if chosen == rejected:
        raise RowError("rejected", "equals chosen, so there is no preference")
    if task == "tldr" and len(messages) == 1:
        messages = [{"role": "user", "content": _as_post(messages[0]["content"])}]
    return PreferencePair(Example(task, messages, chosen), chosen, rejected)


def _gsm8k(row: Mapping[str, Any]) -> tuple[Messages, str]:
    from eval.graders.gsm8k import extract_answer

    question, answer = _text("question", row), _text("answer", row)
    if extract_answer(answer) is None:
        raise RowError("answer", "does not end with '#### number', which grading reads")
    return [{"role": "user", "content": question}], answer


def _tldr(row: Mapping[str, Any]) -> tuple[Messages, str]:
    names = ("subreddit", "title", "post", "summary")
    subreddit, title, post, summary = (_text(name, row) for name in names)
    return [{"role": "user", "content": _post_prompt(subreddit, title, post)}], summary


def _post_prompt(subreddit: str, title: str, post: str) -> str:
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _as_post(prompt: str) -> str:
    """A prompt as rows with fields are given it: white space around its parts is its source's."""
    head, _, rest = prompt.strip().removesuffix("TL;DR:").partition("\nTITLE:")
    title, _, post = rest.partition("\nPOST:")
    subreddit = head.removeprefix("SUBREDDIT:").strip().removeprefix("r/")
    parts = [part.strip() for part in (subreddit, title, post)]
    return _post_prompt(*parts) if all(parts) else prompt


def _chat(row: Mapping[str, Any]) -> tuple[Messages, str]:
    if "messages" not in row and row.keys() & {"prompt", "completion"}:
        prompt = _prompt(row)
        return prompt, _answer("completion", row, prompt)
    if "messages" not in row:
        message = f"is missing, and so are prompt and completion; the row has {_names(row)}"
        raise RowError("messages", message)
    messages = _messages("messages", row.get("messages"))
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise RowError("messages", "must end with a user message and the assistant's answer")
    return messages[:-1], messages[-1]["content"].strip()


def _alpaca(row: Mapping[str, Any]) -> tuple[Messages, str]:
    """A row of AlpacaEval's reference outputs."""
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise RowError("instruction", "is missing, empty or no text")
    _check_whole("instruction", instruction)
    # Difficulties and the judge's coin are keyed by the instruction to the last space.
    return [{"role": "user", "content": instruction}], _text("output", row)


def _text(field: str, row: Mapping[str, Any]) -> str:
    value = row.get(field)
    if value is None:
        raise RowError(field, f"is missing; the row has {_names(row)}")
    if not isinstance(value, str):
        raise RowError(field, f"is {type(value).__name__}, expected text")
    if not value.strip():
        raise RowError(field, "is empty")
    _check_whole(field, value)
    return value.strip()


def _names(row: Mapping[str, Any]) -> str:
    names = [str(name)[:40] for name in row]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "no fields"


def _check_whole(field: str, text: str) -> None:
    if half := _HALF_CHARACTER.search(text):
        shown = f"\\u{ord(half[0]):04x}"
        raise RowError(field, f"holds {shown}, half of a character: write it whole or take it out")


def _messages(field: str, value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        raise RowError(field, "is missing or not a list of {role, content} messages")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise RowError(field, f"message {number} is not a mapping with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            shown = repr(role[:80]) if isinstance(role, str) else type(role).__name__
            raise RowError(field, f"message {number} has role {shown}: system, user or assistant")
        if not isinstance(content, str) or not content.strip():
            raise RowError(field, f"message {number} ({role}) has no text")
        _check_whole(field, content)
        messages.append({"role": role, "content": content})
    return messages


def _prompt(row: Mapping[str, Any]) -> Messages:
    """The prompt of a row: plain text, or a dialogue that ends with the user's turn."""
    prompt = row.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = _messages("prompt", messages)
    if messages[-1]["role"] != "user":
        raise RowError("prompt", "must end with a user message")
    return messages


def _answer(field: str, row: Mapping[str, Any], prompt: Messages) -> str:
    """The text of an answer: plain, one message, or the whole dialogue."""
    value = row.get(field)
    if isinstance(value, str) or value is None:
        return _text(field, row)
    messages = _messages(field, value)
    if len(messages) > 1 and _spoken(messages[:-1]) != _spoken(prompt):
        raise RowError(field, "holds other messages than the prompt and one answer")
    if messages[-1]["role"] != "assistant":
        raise RowError(field, "must end with an assistant message")
    return messages[-1]["content"].strip()


def _spoken(messages: Messages) -> list[tuple[str, list[str]]]:
    return [(message["role"], message["content"].split()) for message in messages]


_READERS: dict[str, Callable[[Mapping[str, Any]], tuple[Messages, str]]] = {
    "gsm8k": _gsm8k,
    "tldr": _tldr,
    "chat": _chat,
    "alpaca": _alpaca,
}
