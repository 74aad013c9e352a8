"""The judge's prompt templates, read from files and filled with a question's texts.

The verdict of a text reply is the last match of the template's pattern after any reasoning: a judge
that reasons quotes verdicts and may change its mind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from eval.judge.types import Question, Reading
from pipeline.errors import InputError, suggest
from pipeline.recipe.shipped import user_path
from pipeline.recipe.strict_yaml import read_yaml_file

PROMPTS = Path(__file__).parent / "prompts"

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
# Tags around reasoning: DeepSeek's and Qwen's, Mistral's, Kimi's, gpt-oss's. The opening tag may be
# part of the prompt, so that the reply only has the closing one.
_TAG = r"(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis)"
_REASONING_END = re.compile(
    rf"(?i:</{_TAG}>)|\[/THINK\]|\u25c1/think\u25b7|<\|channel\|>final<\|message\|>"
)
_REASONING_START = re.compile(
    rf"(?i:<{_TAG}>)|\[THINK\]|\u25c1think\u25b7|<\|channel\|>analysis<\|message\|>"
)
_NAMES = ("prompt", "first", "second", "reference")
_FIELDS = ("system", "prompt", "label_request", "text_request", "labels", "tie", "pattern")


class Asked(TypedDict):
    """The parts of a template that the judge sees."""

    system: str | None
    prompt: str
    request: str


@dataclass(frozen=True)
class Template:
    """A judge's prompt, read from a file.

    Attributes:
        name: the file's name.
        prompt: the user's message, with {prompt}, {first}, {second} and perhaps {reference}.
        labels: the labels of the first and of the second answer.
        label_request: end of the message that asks for a label only, or None.
        text_request: end of the message that asks for a text with a verdict, or None.
        system: the system message, or None.
        tie: the label of a tie, or None.
        pattern: regular expression whose group 1 is the verdict in a text reply.
    """

    name: str
    prompt: str
    labels: tuple[str, str]
    label_request: str | None = None
    text_request: str | None = None
    system: str | None = None
    tie: str | None = None
    pattern: str | None = None

    def asked(self, reads: str) -> Asked:
        """The parts of the template that the judge sees; cached replies are valid while they last.

        Raises:
            InputError: if the template does not ask for what the engine reads.
        """
        request = {"label": self.label_request, "text": self.text_request}[reads]
        if request is None:
            other = "text" if reads == "label" else "label"
            raise InputError(
                f"template {self.name} has no {reads}_request: use a judge with reads: {other}, or "
                f"add {reads}_request to a copy of the template"
            )
        return {"system": self.system, "prompt": self.prompt, "request": request}

    def messages(self, question: Question, reads: str) -> list[dict[str, str]]:
        """The messages of a question. Braces in its texts are left alone."""
        asked = self.asked(reads)
        user = {"role": "user", "content": f"{asked['prompt']}\n\n{asked['request']}"}
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [
            {**message, "content": _fill(message["content"], question)}
            for message in [*system, user]
        ]

    @property
    def shows_reference(self) -> bool:
        """Whether the prompt includes the reference."""
        return "reference" in _PLACEHOLDER.findall(self.prompt)

    def read_text(self, text: str) -> Reading:
        """Read the verdict in a text reply."""
        said = _without_reasoning(text)
        verdicts = [found[1] for found in re.finditer(self.pattern or r"(?!)", said)]
        values = {self.labels[0]: 0.0, self.labels[1]: 1.0}
        if self.tie is not None:
            values[self.tie] = 0.5
        if not verdicts or verdicts[-1] not in values:
            return Reading(None, f"no clear verdict in the reply {said[-200:]!r}")
        return Reading(values[verdicts[-1]])


def _without_reasoning(text: str) -> str:
    """The reply after its last closed reasoning, and before any that is left open."""
    for end in _REASONING_END.finditer(text):
        text = end.string[end.end() :]
    return _REASONING_START.split(text, maxsplit=1)[0].strip()


def load_template(name: str | Path) -> Template:
    """Read a template: a shipped one by name, or a file.

    Raises:
        InputError: if there is no such template, or one of its fields is wrong.
    """
    ours = sorted(path.stem for path in PROMPTS.glob("*.yaml"))
    path = PROMPTS / f"{name}.yaml" if str(name) in ours else Path(name)
    if not user_path(str(path)).is_file():
        raise InputError(
            f"no judge template {name}: give a file, or one of {', '.join(ours)}"
            + suggest(str(name), ours)
        )
    fields = read_yaml_file(path)
    if not isinstance(fields, dict) or not fields.keys() <= set(_FIELDS):
        raise InputError(f"{path}: valid keys are {', '.join(_FIELDS)}")
    labels = fields.pop("labels", None)
    if not isinstance(labels, list) or len(labels) != 2 or labels[0] == labels[1]:
        raise InputError(f"{path}: labels must be two different texts, such as [A, B]")
    for key, value in [*fields.items(), *(("labels", label) for label in labels)]:
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{path}: {key} is {value!r}, expected text: write it in quotes")
    if "label_request" not in fields and not {"text_request", "pattern"} <= fields.keys():
        raise InputError(f"{path}: needs label_request, or text_request and pattern")
    if fields.get("tie") in labels:
        raise InputError(f"{path}: tie equals one of the labels; give it another text")
    _check_placeholders(path, fields)
    first, second = labels
    return Template(path.stem, labels=(first, second), **{"prompt": "", **fields})


def _check_placeholders(path: Path, texts: Mapping[str, str]) -> None:
    used = _PLACEHOLDER.findall(texts.get("prompt", ""))
    if missing := [name for name in _NAMES[:3] if name not in used]:
        raise InputError(f"{path}: prompt lacks {', '.join(f'{{{name}}}' for name in missing)}")
    for key in ("system", "prompt", "label_request", "text_request"):
        for name in _PLACEHOLDER.findall(texts.get(key, "")):
            if name not in (_NAMES if key == "prompt" else ()):
                raise InputError(
                    f"{path}: {key} has {{{name}}}; valid in prompt are {{{'}, {'.join(_NAMES)}}}, "
                    "and nothing elsewhere"
                )
    try:
        groups = re.compile(texts.get("pattern", "()")).groups
    except re.error as error:
        raise InputError(f"{path}: pattern is not a valid regular expression: {error}") from None
    if groups != 1:
        raise InputError(f"{path}: pattern has {groups} groups, expected one, for the verdict")


def _fill(text: str, question: Question) -> str:
    """Fill in a question's texts, in one pass so that placeholders within them are ignored."""
    return _PLACEHOLDER.sub(lambda found: str(getattr(question, found[1])), text)
