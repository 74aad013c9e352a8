"""What a task's rows look like, and how a row becomes a prompt and a reference answer.

`Example.messages` is what the user says; `Example.plain_prompt` is the same for a model without a
chat template. `pipeline.data.render` turns either into tokens, in one place for training,
generation and evaluation.

Decisions: (1) where the model is shown the reference (RAC), the reference stands before the prompt,
so that the prompt ends as it does in training, and with its end-of-turn token, so that the model
sees that the answer ends there; (2) a post that is too long is cut at a line end, a first paragraph
that is too long by itself between words, and the prompt keeps its last line; a dialogue that is too
long loses its oldest turns; a question is never cut; (3) a post reads the same wherever it comes
from: the prompts of preferences take the form that rows with fields get; (4) a field that other
software would render, or train by, is rendered here too, or refused by name; (5) an answer loses
white space at its end, blank lines at its start, and the one space that separates it from a prompt
in TRL's files, but not its indentation.
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
# Fields of a row that change what other software renders or trains on, and that nothing reads here.
_NOT_READ = (
    "assistant_masks", "chat_template_kwargs", "completion_mask", "documents", "functions",
    "function_call", "images", "image", "loss_mask", "videos", "video", "audios", "audio",
    "reasoning", "reasoning_content", "sample_weight", "thinking", "system", "system_prompt",
    "tool_calls", "train", "weight",
)  # fmt: skip
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can write one, no tokenizer can read it


@dataclass(frozen=True)
class Task:
    """What rows hold, how they become prompts, and perhaps how answers are graded.

    Attributes:
        read: row -> (prompt, reference); each is text, or messages that end with the user's turn
            and one message of the assistant's. Raises where the row does not fit.
        plain: the prompt for a model without a chat template, with `{prompt}` in it; None for
            turns that start with `Human:` and `Assistant:`, as all dialogues get them.
        shown: the last user message where the model is shown the reference (RAC), for labels token
            by token, with `{prompt}` and `{reference}`, and `{end}` where an answer ends.
        rewrite: the same where the model rewrites its whole answer, which is `{answer}`.
        grade: (answer, reference) -> whether the answer is right; None where that cannot be told.
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
        """Refuse what no row could be read or shown with.

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


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        task: its name in `TASKS` (AlpacaEval's instructions are chat).
        messages: the prompt as chat messages, ending with a user's turn or a tool's result.
        reference: the text of the reference answer, without end token.
        plain_separator: what stands between plain prompt and answer.
        shots: solved examples before a plain prompt (see `with_shots`).
        tools: descriptions of the functions that the model may call.
        answer: the reference as a message, where it has reasoning or calls tools.
        part: which source it is from, where several are mixed.
        place: where its row stands, such as 'train.jsonl:17'; for people only.
    """

    task: str
    messages: Messages
    reference: str
    plain_separator: str = " "
    shots: str = ""
    tools: list[dict[str, Any]] | None = None
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
        """The same example with another text in the user's last message."""
        messages = list(self.messages)
        messages[self._last_user] = {**messages[self._last_user], "content": content}
        return replace(self, messages=messages)

    def each_answer(self) -> list[Example]:
        """The dialogue up to each answer that follows a question, the whole of it last."""
        earlier = [
            (self.messages[:at], _trimmed(message))
            for at, message in enumerate(self.messages)
            if message["role"] == "assistant" and _asks(self.messages[:at])
        ]
        shorter: list[Example] = [
            replace(self, messages=asked, reference=text_of(said), answer=_more_than_text(said))
            for asked, said in earlier
        ]
        return [*shorter, self]

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
            "prompt": self.question,
            "reference": self.reference,
            "answer": answer,
            "end": end,
        }
        return self.with_question(
            re.sub(r"\{(prompt|reference|answer|end)\}", lambda found: texts[found[1]], template)
        )

    def shorter(self) -> list[Callable[[], Example]]:
        """Ever longer cuts of a prompt that is too long (decision 2); none for a question.

        Each is made when it is called: all cuts of a long post do not fit into memory.
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
    """The messages with a system message first, where there is one and they have none."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a better and a worse answer.

    `answers` holds both as messages, where one of them has reasoning or calls tools.
    """

    example: Example
    chosen: str
    rejected: str
    answers: tuple[Message, Message] | None = None


class RowError(ValueError):
    """A row that cannot be used. `field` names the field at fault, '' where it is the whole row."""

    def __init__(self, field: str, message: str):
        self.field = field
        super().__init__(message)

    @property
    def sentence(self) -> str:
        """What is wrong, with the field."""
        return f"field {self.field!r} {self}" if self.field else str(self)


def example_of(task: str, row: Mapping[str, Any]) -> Example:
    """Read one row of a task.

    Raises:
        RowError: when a field is missing, empty or of the wrong type.
    """
    if task == "alpaca":
        messages, answer = _alpaca(row)
        return Example("chat", messages, answer["content"])
    key, read = task_key(task), task_named(task).read
    if key not in BUILT_IN:  # every field is for its own code to read
        messages, answer = said(*read(row))
        return Example(key, messages, text_of(answer), answer=_more_than_text(answer))
    _check_fields(row)
    messages, answer = said(*read(row))
    return Example(
        key, messages, text_of(answer), tools=_tools(row), answer=_more_than_text(answer)
    )


def said(prompt: str | Messages, answer: str | Message) -> tuple[Messages, Message]:
    """What a task reads of a row, as messages."""
    messages = [_said("user", prompt)] if isinstance(prompt, str) else prompt
    return messages, _said("assistant", answer) if isinstance(answer, str) else answer


def checked(prompt: Any, reference: Any) -> tuple[Messages, Message]:
    """What code of one's own gives for a row, held to what files of messages are held to.

    Raises:
        RowError: when it is no prompt, or no answer.
    """
    messages = _prompt({"prompt": prompt})
    given = [reference] if isinstance(reference, dict) else reference
    return messages, _answer("reference", {"reference": given}, messages)


def preference_of(task: str, row: Mapping[str, Any]) -> PreferencePair:
    """Read one `prompt/chosen/rejected` row, conversational or plain text.

    Raises:
        RowError: as `example_of`; also when chosen equals rejected.
    """
    _check_fields(row)
    messages = _prompt(row)
    chosen, rejected = _answer("chosen", row, messages), _answer("rejected", row, messages)
    if _as_seen(chosen) == _as_seen(rejected):
        raise RowError("rejected", "equals chosen, so there is no preference")
    if task == "tldr" and len(messages) == 1:
        messages = [_said("user", _as_post(messages[0]["content"]))]
    task, text = task_key(task), text_of(chosen)
    more = any(map(_more_than_text, (chosen, rejected)))
    example = Example(task, messages, text, tools=_tools(row), answer=_more_than_text(chosen))
    return PreferencePair(example, text, text_of(rejected), (chosen, rejected) if more else None)


def _as_seen(answer: Message) -> str:
    """An answer however its accents are written."""
    return unicodedata.normalize("NFC", json.dumps(answer, ensure_ascii=False, default=str))


def text_of(answer: Message) -> str:
    """An answer as text for people; how a model writes it, its chat template knows."""
    calls = [json.dumps(call["function"], default=str) for call in answer.get("tool_calls", ())]
    parts = [answer.get("reasoning_content", ""), answer["content"], *calls]
    return "\n\n".join(part for part in parts if part)


def _more_than_text(answer: Message) -> Message | None:
    return answer if len(answer) > 2 else None


def _gsm8k(row: Mapping[str, Any]) -> tuple[Messages, Message]:
    from eval.graders.gsm8k import extract_answer

    question, answer = _text("question", row), _text("answer", row)
    if extract_answer(answer) is None:
        raise RowError("answer", "does not end with '#### number', which grading reads")
    return [_said("user", question)], _said("assistant", answer)


def _tldr(row: Mapping[str, Any]) -> tuple[Messages, Message]:
    names = ("subreddit", "title", "post", "summary")
    subreddit, title, post, summary = (_text(name, row) for name in names)
    return [_said("user", _post_prompt(subreddit, title, post))], _said("assistant", summary)


def _post_prompt(subreddit: str, title: str, post: str) -> str:
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _as_post(prompt: str) -> str:
    """A prompt as rows with fields are given it: white space around its parts is its source's."""
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
    if messages[-1]["role"] != "assistant" or not _asks(messages[:-1]):
        raise RowError("messages", "must end with a user message and the assistant's answer")
    return messages[:-1], _trimmed(messages[-1])


def _asks(messages: Messages) -> bool:
    """Whether messages end with a user's turn, or with what a tool found for one."""
    roles = [message["role"] for message in messages]
    return roles[-1:] == ["user"] or (roles[-1:] == ["tool"] and "user" in roles)


def _alpaca(row: Mapping[str, Any]) -> tuple[Messages, Message]:
    """A row of AlpacaEval's reference outputs."""
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise RowError("instruction", "is missing, empty or no text")
    _check_whole("instruction", instruction)
    # Difficulties and the judge's coin are keyed by the instruction to the last space.
    return [_said("user", instruction)], _said("assistant", _text("output", row))


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _check_fields(row: Mapping[str, Any]) -> None:
    for name in _NOT_READ:
        if not _is_empty(row.get(name)):
            raise RowError(name, f"{_UNREAD}; take it out, or write it into the messages")
    label = row.get("label")
    if label == 0 or (isinstance(label, str) and label.strip().lower() in ("false", "0")):
        raise RowError(
            "label",
            f"is {label!r}, which marks a bad answer, and would be trained on; take out the row, "
            "or the field if it means something else",
        )


_UNREAD = "is not read here, and without it the row would mean something else"


def _is_empty(value: Any) -> bool:
    """Whether a field holds nothing, as those of tables do that only other rows have."""
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
    _check_whole(field, value)
    return value


def _is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control characters, marks of no width."""
    return all(one.isspace() or unicodedata.category(one) in ("Cc", "Cf") for one in text)


def _trimmed(answer: Message) -> Message:
    """An answer without the white space around it that does not belong to it (decision 5)."""
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", answer["content"].rstrip())
    return {**answer, "content": re.sub(r"\A (?=\S)", "", text)}


def _names(row: Mapping[str, Any]) -> str:
    names = [str(name)[:40] for name in row]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "no fields"


def _check_whole(field: str, text: str) -> None:
    if half := _HALF_CHARACTER.search(text):
        shown = f"\\u{ord(half[0]):04x}"
        raise RowError(field, f"holds {shown}, half of a character: write it whole or take it out")


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
            raise RowError(field, f"{where} has {str(key)[:40]!r}, which {_UNREAD}; take it out")
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
    _check_whole(field, json.dumps(read, ensure_ascii=False, default=str))
    return read


_REASONING = ("reasoning_content", "reasoning", "thinking")


def _calls(field: str, where: str, calls: Any) -> list[dict[str, Any]]:
    """Calls of tools as templates read them: arguments are a mapping, never JSON text."""
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


def _tools(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What a row says of the functions that its model may call; None where it says nothing."""
    if _is_empty(tools := row.get("tools")):
        return None
    tools = _parsed(tools) if isinstance(tools, str) else tools
    for tool in tools if isinstance(tools, list) and tools else [None]:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError("tools", "is not a list of {type, function: {name, ...}}, or JSON of it")
    _check_whole("tools", json.dumps(tools, ensure_ascii=False, default=str))
    return tools


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _prompt(row: Mapping[str, Any]) -> Messages:
    """The prompt of a row: plain text, or a dialogue that ends with the user's turn."""
    prompt = row.get("prompt")
    if "prompt" not in row:
        raise RowError("prompt", f"is missing; the row has {_names(row)}")
    messages = [_said("user", prompt)] if isinstance(prompt, str) else prompt
    messages = _messages("prompt", messages)
    if not _asks(messages):
        raise RowError("prompt", "must end with a user message")
    return messages


def _answer(field: str, row: Mapping[str, Any], prompt: Messages) -> Message:
    """An answer: plain text, one message, or the whole dialogue."""
    value = row.get(field)
    if isinstance(value, str) or value is None:
        return _trimmed(_said("assistant", _any_text(field, row)))
    messages = _messages(field, value)
    if len(messages) > 1 and _spoken(messages[:-1]) != _spoken(prompt):
        raise RowError(field, "holds other messages than the prompt and one answer")
    if messages[-1]["role"] != "assistant":
        raise RowError(field, "must end with an assistant message")
    return _trimmed(messages[-1])


def _spoken(messages: Messages) -> list[tuple[str, list[str]]]:
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
BUILT_IN = tuple(TASKS)  # those of files come later: see pipeline.data.task_file
OWN = "own-"  # what the names of these begin with


def task_key(task: str) -> str:
    """The name of a recipe's task in `TASKS` and in identities: of a file, after its content.

    Raises:
        InputError: when the file cannot be read.
    """
    if not task.endswith(".py"):
        return task
    try:
        content = user_path(task).read_bytes()
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise InputError(f"{task}: {reason} (paths start at the working folder)") from None
    return f"{OWN}{hashlib.sha256(content).hexdigest()[:16]}"


def task_named(task: str) -> Task:
    """The task of a recipe, an example or a step; one from a file must have been loaded."""
    return TASKS.get(task) or TASKS[task_key(task)]
