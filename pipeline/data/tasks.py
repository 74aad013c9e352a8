"""Tasks: the fields of their rows, and how a row becomes a prompt and a reference answer.

`Example.messages` is the prompt; `Example.plain_prompt` is the same for a model without a chat
template. `pipeline.data.render` turns either into tokens, in one place for training, generation and
evaluation.

Decisions: (1) a reference-conditioned prompt (RAC) has the reference before the prompt, so that the
prompt ends as it does in training, and with its end-of-turn token, so that the model sees that the
answer ends there; (2) a post that is too long is cut at a line end, or between words within its
first paragraph, and the prompt keeps its last line; a dialogue that is too long loses its oldest
turns; a question is never cut; (3) posts have the same form whatever their source: prompts of
preferences are brought into the form of rows with fields; (4) a field that other software would
render, or that affects its training, is rendered here too, or refused by name; (5) an answer loses
white space at its end, blank lines at its start, and the single space that separates it from a
prompt in TRL's files, but not its indentation.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pipeline.errors import InputError
from pipeline.recipe.shipped import user_path

Message = dict[str, Any]
Messages = list[Message]
Tools = list[dict[str, Any]]  # JSON schemas of functions
# Fields that change what other software renders or trains on, and that are not supported here.
_UNSUPPORTED_FIELDS = (
    "assistant_masks", "chat_template_kwargs", "completion_mask", "documents", "functions",
    "function_call", "images", "image", "loss_mask", "videos", "video", "audios", "audio",
    "reasoning", "reasoning_content", "sample_weight", "thinking", "system", "system_prompt",
    "tool_calls", "train", "weight",
)  # fmt: skip
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # valid in JSON, but not for tokenizers


@dataclass(frozen=True)
class Task:
    """How rows are read, how they become prompts, and optionally how answers are graded.

    Attributes:
        read: row -> (prompt, reference); the prompt is text, or messages that end with a user turn,
            the reference text or one assistant message. Raises if the row does not fit.
        plain: the prompt for a model without a chat template, containing `{prompt}`; None for turns
            that start with `Human:` and `Assistant:`, which dialogues always get.
        shown: the last user message of the reference-conditioned prompt (RAC), for token labels,
            with `{prompt}`, `{reference}`, and `{end}` at the end of an answer.
        rewrite: the same for rewriting the model's whole answer, which is `{answer}`.
        grade: (answer, reference) -> whether the answer is correct; None if that is undecidable.
    """

    read: Callable[[Mapping[str, Any]], tuple[str | Messages, str | Message]]
    plain: str | None = None
    shown: str = "A good answer to the prompt below:\n{reference}{end}\n\n{prompt}"
    rewrite: str = (
        "A good answer to the prompt below:\n{reference}{end}\n\n"
        "An answer to correct:\n{answer}\n\n{prompt}"
    )
    grade: Callable[[str, str], bool] | None = None

    def __post_init__(self) -> None:
        """Validate the fields.

        Raises:
            ValueError: with what is wrong.
        """
        for name in ("read", "grade"):
            value = getattr(self, name)
            if not callable(value) and (name == "read" or value is not None):
                raise ValueError(f"{name} is {type(value).__name__}, expected a function")
        needed = {"plain": ["prompt"], "shown": ["prompt", "reference"]}
        needed["rewrite"] = ["prompt", "reference", "answer"]
        for name, places in needed.items():
            text = getattr(self, name)
            if text is None and name == "plain":
                continue
            if not isinstance(text, str):
                raise ValueError(f"{name} is {type(text).__name__}, expected text")
            if missing := [f"{{{place}}}" for place in places if f"{{{place}}}" not in text]:
                raise ValueError(f"{name} lacks {' and '.join(missing)}")


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task.

    Attributes:
        task: its name in `TASKS` (AlpacaEval's instructions are chat).
        messages: the prompt as chat messages, ending with a user's turn or a tool's result.
        reference: the text of the reference answer, without end token.
        plain_separator: the text between plain prompt and answer.
        shots: solved examples before a plain prompt (see `with_shots`).
        tools: descriptions of the functions that the model may call.
        answer: the reference as a message, if it has reasoning or tool calls.
        part: its source in a mixture of several, else empty.
        place: where its row stands, such as 'train.jsonl:17'; for messages only.
    """

    task: str
    messages: Messages
    reference: str
    plain_separator: str = " "
    shots: str = ""
    tools: Tools | None = None
    answer: Message | None = None
    part: str = ""
    place: str = field(default="", compare=False)

    @property
    def plain_prompt(self) -> str:
        """The prompt for a model without a chat template."""
        plain = task_named(self.task).plain
        if len(self.messages) == 1 and plain is not None:
            return self.shots + plain.replace("{prompt}", self.messages[0]["content"])
        names = {"system": "System", "user": "Human", "assistant": "Assistant", "tool": "Tool"}
        lines = [f"{names[message['role']]}: {message['content']}" for message in self.messages]
        return "\n\n".join([*lines, "Assistant:"])

    @property
    def question(self) -> str:
        """The user's last message."""
        return self.messages[self._last_user]["content"]

    @property
    def _last_user(self) -> int:
        roles = [message["role"] for message in self.messages]
        return max(at for at, role in enumerate(roles) if role == "user")

    def with_question(self, content: str) -> Example:
        """The same example with another last user message."""
        messages = list(self.messages)
        messages[self._last_user] = {**messages[self._last_user], "content": content}
        return replace(self, messages=messages)

    def each_answer(self) -> list[Example]:
        """The dialogue up to each answer that follows a question, the whole of it last."""
        earlier = [
            (self.messages[:at], _trimmed(message))
            for at, message in enumerate(self.messages)
            if message["role"] == "assistant" and _ends_with_prompt(self.messages[:at])
        ]
        shorter: list[Example] = [
            replace(self, messages=asked, reference=text_of(answer), answer=_more_than_text(answer))
            for asked, answer in earlier
        ]
        return [*shorter, self]

    def with_shots(self, solved: Sequence[Example]) -> Example:
        """The example with solved examples before its plain prompt, in lm-eval's format."""
        texts = [f"{shot.plain_prompt}{shot.plain_separator}{shot.reference}" for shot in solved]
        return replace(self, shots="".join(f"{text}\n\n" for text in texts))

    def shown(self, template: str, *, answer: str = "", end: str = "") -> Example:
        """The example with a reference-conditioned prompt.

        `template` is its last user message, with `{prompt}`, `{reference}`, `{answer}` (the model's
        own) and `{end}` (the end-of-turn token).
        """
        texts = {"prompt": self.question, "reference": self.reference, "answer": answer, "end": end}
        return self.with_question(
            re.sub(r"\{(prompt|reference|answer|end)\}", lambda found: texts[found[1]], template)
        )

    def shorter(self) -> list[Callable[[], Example]]:
        """Cuts of a prompt that is too long, from short to long (decision 2); none for a question.

        They are functions, because all cuts of a long post together may not fit into memory.
        """
        if self.task != "tldr":
            turns = [i for i, message in enumerate(self.messages) if message["role"] == "user"][1:]
            system = [message for message in self.messages[:1] if message["role"] == "system"]
            return [partial(self._from_turn, system, turn) for turn in reversed(turns)]
        text = self.messages[-1]["content"]
        before = text.rstrip().removesuffix("TL;DR:")
        body, mark = before.rstrip(), text[len(before.rstrip()) :]
        if not mark.strip() or len(body) == len(before):
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
        return self.with_question(body[:end].rstrip() + mark)


def with_system(messages: Messages, system: str | None) -> Messages:
    """The messages, after the system message if there is one and they have none."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a better and a worse answer.

    `answers` holds both as messages, if either has reasoning or tool calls.
    """

    example: Example
    chosen: str
    rejected: str
    answers: tuple[Message, Message] | None = None


class RowError(ValueError):
    """A row that cannot be used. `field` is the field at fault, '' for the whole row."""

    def __init__(self, field: str, message: str):
        self.field = field
        super().__init__(message)

    @property
    def sentence(self) -> str:
        """The message, with the field."""
        return f"field {self.field!r} {self}" if self.field else str(self)


def example_of(task: str, row: Mapping[str, Any]) -> Example:
    """Read one row of a task.

    Raises:
        RowError: if a field is missing, empty or of the wrong type.
    """
    if task == "alpaca":
        messages, answer = _alpaca(row)
        return Example("chat", messages, answer["content"])
    key = task_key(task)
    built_in = key in BUILT_IN  # only a user's own code knows which fields its rows have
    if built_in:
        _check_fields(row)
    messages, answer = as_messages(*task_named(task).read(row))
    tools = _tools(row) if built_in else None
    return Example(key, messages, text_of(answer), tools=tools, answer=_more_than_text(answer))


def as_messages(prompt: str | Messages, answer: str | Message) -> tuple[Messages, Message]:
    """What a task's `read` returns, as messages."""
    messages = [_turn("user", prompt)] if isinstance(prompt, str) else prompt
    return messages, _turn("assistant", answer) if isinstance(answer, str) else answer


def checked(prompt: Any, reference: Any) -> tuple[Messages, Message]:
    """Check what a user's `read` returned, as strictly as files of messages.

    Raises:
        RowError: if it is not a prompt and an answer.
    """
    messages = _prompt({"prompt": prompt})
    given = [reference] if isinstance(reference, dict) else reference
    return messages, _answer("reference", {"reference": given}, messages)


def preference_of(task: str, row: Mapping[str, Any]) -> PreferencePair:
    """Read one `prompt/chosen/rejected` row, conversational or plain text.

    Raises:
        RowError: as `example_of`, and if chosen equals rejected.
    """
    _check_fields(row)
    messages = _prompt(row)
    chosen, rejected = _answer("chosen", row, messages), _answer("rejected", row, messages)
    if _as_seen(chosen) == _as_seen(rejected):
        raise RowError("rejected", "equals chosen, so there is no preference")
    if task == "tldr" and len(messages) == 1:
        messages = [_turn("user", _as_post(messages[0]["content"]))]
    task, text = task_key(task), text_of(chosen)
    more = any(map(_more_than_text, (chosen, rejected)))
    example = Example(task, messages, text, tools=_tools(row), answer=_more_than_text(chosen))
    return PreferencePair(example, text, text_of(rejected), (chosen, rejected) if more else None)


def _as_seen(answer: Message) -> str:
    """An answer however its accents are written."""
    return unicodedata.normalize("NFC", json.dumps(answer, ensure_ascii=False, default=str))


def text_of(answer: Message) -> str:
    """An answer as readable text; what a model generates is up to its chat template."""
    calls = [json.dumps(call["function"], default=str) for call in answer.get("tool_calls", ())]
    parts = [answer.get("reasoning_content", ""), answer["content"], *calls]
    return "\n\n".join(part for part in parts if part)


def _more_than_text(answer: Message) -> Message | None:
    return answer if len(answer) > 2 else None


def _gsm8k(row: Mapping[str, Any]) -> tuple[Messages, Message]:
    from eval.graders.gsm8k import extract_answer

    question, answer = _text("question", row), _text("answer", row)
    if extract_answer(answer) is None:
        raise RowError("answer", "does not end with '#### number', which grading needs")
    return [_turn("user", question)], _turn("assistant", answer)


def _tldr(row: Mapping[str, Any]) -> tuple[Messages, Message]:
    names = ("subreddit", "title", "post", "summary")
    subreddit, title, post, summary = (_text(name, row) for name in names)
    return [_turn("user", _post_prompt(subreddit, title, post))], _turn("assistant", summary)


def _post_prompt(subreddit: str, title: str, post: str) -> str:
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _as_post(prompt: str) -> str:
    """Bring a prompt into the form of rows with fields: without white space around its parts."""
    head, _, rest = prompt.strip().removesuffix("TL;DR:").partition("\nTITLE:")
    title, _, post = rest.partition("\nPOST:")
    subreddit = head.removeprefix("SUBREDDIT:").strip().removeprefix("r/")
    parts = [part.strip() for part in (subreddit, title, post)]
    return _post_prompt(*parts) if all(parts) else prompt


def _chat(row: Mapping[str, Any]) -> tuple[Messages, Message]:
    if row.get("messages") is None and row.keys() & {"prompt", "completion"}:
        prompt = _prompt(row)
        return prompt, _answer("completion", row, prompt)
    if row.get("messages") is None:
        message = f"is missing, and so are prompt and completion; the row has {_names(row)}"
        raise RowError("messages", message)
    messages = _messages("messages", row["messages"])
    if messages[-1]["role"] != "assistant" or not _ends_with_prompt(messages[:-1]):
        raise RowError("messages", "must end with a user message and the assistant's answer")
    return messages[:-1], _trimmed(messages[-1])


def _ends_with_prompt(messages: Messages) -> bool:
    """Whether messages end with a user turn, or with a tool's result for one."""
    roles = [message["role"] for message in messages]
    return roles[-1:] == ["user"] or (roles[-1:] == ["tool"] and "user" in roles)


def _alpaca(row: Mapping[str, Any]) -> tuple[Messages, Message]:
    """A row of AlpacaEval's reference outputs."""
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise RowError("instruction", "is missing, empty or not text")
    _check_characters("instruction", instruction)
    # Not stripped: difficulties and the judge's coin are keyed by the exact instruction.
    return [_turn("user", instruction)], _turn("assistant", _text("output", row))


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _check_fields(row: Mapping[str, Any]) -> None:
    for name in _UNSUPPORTED_FIELDS:
        if not _is_empty(row.get(name)):
            raise RowError(name, f"{_UNSUPPORTED}; remove it, or write it into the messages")
    label = row.get("label")
    if label == 0 or (isinstance(label, str) and label.strip().lower() in ("false", "0")):
        raise RowError(
            "label",
            f"is {label!r}, which marks a bad answer, and would be trained on; take out the row, "
            "or the field if it means something else",
        )


_UNSUPPORTED = "is not supported here, and without it the row would mean something else"


def _is_empty(value: Any) -> bool:
    """Whether a field is empty, as in tables where only other rows have it."""
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _text(field: str, row: Mapping[str, Any]) -> str:
    return _any_text(field, row).strip()


def _any_text(field: str, row: Mapping[str, Any]) -> str:
    value = row.get(field)
    if value is None:
        raise RowError(field, f"is missing; the row has {_names(row)}")
    if not isinstance(value, str):
        raise RowError(field, f"is {type(value).__name__}, expected text")
    if _is_blank(value):
        raise RowError(field, "is empty")
    _check_characters(field, value)
    return value


def _is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control characters, marks of no width."""
    return all(one.isspace() or unicodedata.category(one) in ("Cc", "Cf") for one in text)


def _trimmed(answer: Message) -> Message:
    """An answer without the white space around it (decision 5)."""
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", answer["content"].rstrip())
    return {**answer, "content": re.sub(r"\A (?=\S)", "", text)}


def _names(row: Mapping[str, Any]) -> str:
    names = [str(name)[:40] for name in row]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "no fields"


def _check_characters(field: str, text: str) -> None:
    if half := _HALF_CHARACTER.search(text):
        shown = f"\\u{ord(half[0]):04x}"
        raise RowError(field, f"holds {shown}, half of a character: complete or remove it")


def _messages(field: str, value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        what = "missing" if value is None else f"{value!r:.40}"
        text = "" if field == "messages" else "text, or "
        raise RowError(field, f"is {what}, expected {text}a list of {{role, content}} messages")
    return [_message(field, number, message) for number, message in enumerate(value)]


def _message(field: str, number: int, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise RowError(field, f"message {number} is not a mapping with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant", "tool"):
        shown = repr(role[:80]) if isinstance(role, str) else type(role).__name__
        raise RowError(field, f"message {number} has role {shown}: system, user, assistant or tool")
    where = f"message {number} ({role})"
    more = {key: value for key, value in message.items() if not _is_empty(value)}
    more = {key: value for key, value in more.items() if key not in ("role", "content")}
    known = {"assistant": (*_REASONING, "tool_calls"), "tool": ("name", "tool_call_id")}
    for key in more:
        if key not in known.get(role, ()):
            raise RowError(field, f"{where} has {str(key)[:40]!r}, which {_UNSUPPORTED}; remove it")
    read: Message = {}
    if "tool_calls" in more:
        read["tool_calls"] = _calls(field, where, more.pop("tool_calls"))
        content = "" if content is None else content
    elif isinstance(content, str) and _is_blank(content):
        content = None
    if content is None:
        raise RowError(field, f"{where} has no text")
    if not isinstance(content, str):
        given = "a list of parts" if isinstance(content, list) else type(content).__name__
        raise RowError(field, f"{where} has {given} as its content, expected one text")
    if len(thoughts := [more.pop(key) for key in _REASONING if key in more]) > 1:
        raise RowError(field, f"{where} has reasoning under several names; keep reasoning_content")
    if thoughts:
        read["reasoning_content"] = thoughts[0]
    read = {"role": role, "content": content, **more, **read}
    for key, text in read.items():
        if key != "tool_calls" and not isinstance(text, str):
            raise RowError(field, f"{where} has {type(text).__name__} in {key}, expected text")
    _check_characters(field, json.dumps(read, ensure_ascii=False, default=str))
    return read


_REASONING = ("reasoning_content", "reasoning", "thinking")


def _calls(field: str, where: str, calls: Any) -> list[dict[str, Any]]:
    """Tool calls in the form that templates expect: arguments are a mapping, not JSON text."""
    read = []
    for given in calls if isinstance(calls, list) else [None]:
        call: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        function = call.get("function", call)
        arguments = (function.get("arguments") or {}) if isinstance(function, Mapping) else None
        arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, Mapping) or not isinstance(function.get("name"), str):
            wanted = "[{function: {name, arguments}}, ...], arguments a mapping or JSON of one"
            raise RowError(field, f"{where} has tool_calls that are not {wanted}")
        known = call if "function" in call else {"type": "function"}
        read.append({**known, "function": {**function, "arguments": arguments}})
    return read


def _tools(row: Mapping[str, Any]) -> Tools | None:
    """A row's descriptions of the functions that the model may call, or None."""
    if _is_empty(tools := row.get("tools")):
        return None
    tools = _parsed(tools) if isinstance(tools, str) else tools
    for tool in tools if isinstance(tools, list) and tools else [None]:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError("tools", "is not a list of {type, function: {name, ...}}, or JSON of it")
    _check_characters("tools", json.dumps(tools, ensure_ascii=False, default=str))
    return tools


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _prompt(row: Mapping[str, Any]) -> Messages:
    """A row's prompt: plain text, or a dialogue that ends with a user turn."""
    prompt = row.get("prompt")
    if "prompt" not in row:
        raise RowError("prompt", f"is missing; the row has {_names(row)}")
    messages = [_turn("user", prompt)] if isinstance(prompt, str) else prompt
    messages = _messages("prompt", messages)
    if not _ends_with_prompt(messages):
        raise RowError("prompt", "must end with a user message")
    return messages


def _answer(field: str, row: Mapping[str, Any], prompt: Messages) -> Message:
    """An answer: plain text, one message, or the whole dialogue."""
    value = row.get(field)
    if isinstance(value, str) or value is None:
        return _trimmed(_turn("assistant", _any_text(field, row)))
    messages = _messages(field, value)
    if len(messages) > 1 and _words_by_role(messages[:-1]) != _words_by_role(prompt):
        raise RowError(field, "holds messages other than the prompt and one answer")
    if messages[-1]["role"] != "assistant":
        raise RowError(field, "must end with an assistant message")
    return _trimmed(messages[-1])


def _words_by_role(messages: Messages) -> list[tuple[str, list[str]]]:
    return [(message["role"], text_of(message).split()) for message in messages]


def _right_number(answer: str, reference: str) -> bool:
    from eval.graders.gsm8k import grade

    return grade(answer, reference, how="strict", truncated=False).value == "correct"


TASKS: dict[str, Task] = {
    "gsm8k": Task(
        _gsm8k,
        plain="Question: {prompt}\nAnswer:",
        shown="A correct solution of the problem below:\n{reference}{end}\n\n{prompt}",
        rewrite="A correct solution of the problem below:\n{reference}{end}\n\n"
        "An attempt to correct:\n{answer}\n\n{prompt}",
        grade=_right_number,
    ),
    "tldr": Task(
        _tldr,
        plain="{prompt}",
        shown="A good summary of the post below:\n{reference}{end}\n\n{prompt}",
        rewrite="A good summary of the post below:\n{reference}{end}\n\n"
        "A summary to correct:\n{answer}\n\n{prompt}",
    ),
    "chat": Task(
        _chat,
        shown="A good reply to the message below:\n{reference}{end}\n\n{prompt}",
        rewrite="A good reply to the message below:\n{reference}{end}\n\n"
        "A reply to correct:\n{answer}\n\n{prompt}",
    ),
}
BUILT_IN = tuple(TASKS)  # pipeline.data.task_file adds users' tasks later
OWN = "own-"  # the prefix of their names


def task_key(task: str) -> str:
    """The name of a recipe's task in `TASKS` and in identities; a file's name is its digest.

    Raises:
        InputError: if the file cannot be read.
    """
    if not task.endswith(".py"):
        return task
    try:
        content = user_path(task).read_bytes()
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise InputError(f"{task}: {reason} (paths are relative to the working folder)") from None
    return f"{OWN}{hashlib.sha256(content).hexdigest()[:16]}"


def task_named(task: str) -> Task:
    """The task of a recipe, an example or a step; a user's task must have been loaded."""
    return TASKS.get(task) or TASKS[task_key(task)]
