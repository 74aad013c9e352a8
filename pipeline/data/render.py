"""Renders text to tokens, in one place for training, generation and evaluation.

Prompt and answer are tokenised separately and joined as ids, so the prompt is always a prefix of
the row. Decisions: (1) a model's own chat template is used if there is one, else the recipe's
`chat_template:`, else the task's plain prompt; (2) an answer ends with exactly one end-of-turn
token: the special token that the template puts after an assistant turn, else the tokenizer's end
token; (3) a beginning token is added once, by the template or by the tokenizer, never by both;
(4) a prompt longer than `max_prompt_length` is cut in the same way in training, generation and
evaluation (see Example.shorter); (5) a template that prints today's date prints `template_date`;
(6) an answer must follow the generation prompt exactly as the template renders it there, or the row
is refused; reasoning and tool calls are text that the template renders.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

from pipeline.data.tasks import Example, Message, Messages, PreferencePair, RowError, with_system
from pipeline.errors import InputError, StepFailedError
from pipeline.recipe.schema import TEMPLATE_DATE
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import RenderedModelOptions, TemplateOptions


class TemplateTerms(TypedDict):
    """What a `Renderer` is told for the chat template."""

    template_date: str
    template_options: Mapping[str, Any]


_PROBE = "bashrac-probe"
_PROBE_ANSWER: Message = {"role": "assistant", "content": _PROBE}
_READS_REASONING = re.compile("reasoning|thinking")
# The tags around a model's reasoning: <think> and </think>, [THINK] and [/THINK].
_EMPTY_BLOCK = re.compile(r"<([\w|-]+)>\s*</\1>|\[([A-Z]+)\]\s*\[/\2\]")
_OPENED = re.compile(r"(<|\[)([\w|-]+)(>|\])\Z")
_REFUSES = "the model's chat template refuses it"
_LEAVES_OUT = "the model's chat template leaves out"
_MISPLACED = "the model's chat template does not put the answer right after its generation prompt"
_WAY_OUT = (
    "provide rows with reasoning_content, or write chat_template_kwargs: {enable_thinking: false} "
    "if the template supports it, or use a model whose answered turns begin with that prompt"
)
_NO_TEMPLATE = "has tools, calls or reasoning, but the model has no chat template to render them"
_DIRECTIVES = "aAbBcdDeFfgGhHIjklmMnpPrRStTuUVwWxXyYzZ"


@dataclass
class Renderer:
    """Renders examples for one tokenizer.

    Attributes:
        tokenizer: a transformers tokenizer.
        system: a system message put before every prompt that has none, or None.
        max_prompt_length: longest prompt in tokens, or None.
        end_ids: the end tokens in the model's generation config.
        window: the model's context length, or None if unknown.
        vocabulary: the number of rows in the model's embedding, or None if unknown.
        plain: whether chat template and system message are ignored, as lm-eval does.
        template_date: today's date for the chat template, as YYYY-MM-DD.
        template_options: further variables for the chat template, such as `enable_thinking`.
    """

    tokenizer: Any
    system: str | None = None
    max_prompt_length: int | None = None
    end_ids: tuple[int, ...] = ()
    window: int | None = None
    vocabulary: int | None = None
    plain: bool = False
    template_date: str = TEMPLATE_DATE
    template_options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _ints(self) -> dict[int, int]:
        return {}

    @cached_property
    def _lost(self) -> dict[tuple[str, ...], str]:
        """Roles of a dialogue -> the role of a message that the chat template leaves out, or ''."""
        return {}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """All special tokens: named ones, and those that the tokenizer only marks (roles)."""
        # In transformers 5, `all_special_ids` holds only the former.
        added = self.tokenizer.added_tokens_decoder.items()
        marked = {number for number, token in added if token.special}
        return frozenset(marked | set(self.tokenizer.all_special_ids))

    @cached_property
    def ids_without_token(self) -> tuple[int, ...]:
        """Ids that the model can sample but the tokenizer lacks: padding of the vocabulary."""
        known = set(self.tokenizer.get_vocab().values())
        return tuple(number for number in range(self.vocabulary or 0) if number not in known)

    @property
    def has_template(self) -> bool:
        """Whether prompts are rendered with a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None)) and not self.plain

    @cached_property
    def end_of_turn_id(self) -> int:
        """The token that ends an answer.

        Raises:
            InputError: if neither the tokenizer nor the chat template has an end token.
        """
        if self.has_template:
            _, text = self._probe("a")
            after = self.tokenizer(text.split(_PROBE)[-1], add_special_tokens=False)["input_ids"]
            # A template may put white space before the token, and the start of a turn after it.
            for token_id in after:
                if token_id in self.special_ids:
                    return token_id
                if self.tokenizer.decode([token_id]).strip():
                    break
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                "the model's tokenizer has neither an end token nor a chat template that ends a "
                "turn with a special token: a model trained with it would never learn to stop"
            )
        return self.tokenizer.eos_token_id

    @property
    def end_of_turn(self) -> str:
        """The end-of-turn token as text."""
        return self.tokenizer.decode([self.end_of_turn_id])

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that stop generation, the end-of-turn token first."""
        return list(dict.fromkeys([self.end_of_turn_id, *self.end_ids]))

    def digest(self) -> str:
        """Sha256 of rendered probe dialogues: equal if the rendering is equal."""
        turns = [("user", "One two.\n\n3"), ("assistant", "Four."), ("user", _PROBE)]
        messages = [{"role": role, "content": content} for role, content in turns]
        examples = [
            Example(task, dialogue, _PROBE)
            for task in ("gsm8k", "tldr", "chat")
            for dialogue in (messages[-1:], messages)
        ]
        ids = [(self._known_ids(probe), self.answer_ids(probe, _PROBE)) for probe in examples]
        return artifact.fingerprint(ids)

    def check_vocabulary(self) -> None:
        """Refuse a tokenizer whose padding or template uses tokens that the model does not have.

        Raises:
            InputError: with the token.
        """
        probe = Example("chat", [{"role": "user", "content": _PROBE}], _PROBE)
        prompt, answer = self._known_ids(probe) or [], self.answer_ids(probe, _PROBE)
        used = [*prompt, *answer, self.end_of_turn_id]
        if self.tokenizer.pad_token_id is not None:
            used.append(self.tokenizer.pad_token_id)
        if (unknown := self.unknown(used)) is not None:
            raise InputError(self.describe_unknown(unknown))

    def unknown(self, ids: Sequence[int]) -> int | None:
        """Return the largest id if it is beyond the model's embedding, else None."""
        largest = max(ids, default=0)
        return largest if self.vocabulary is not None and largest >= self.vocabulary else None

    def describe_unknown(self, token_id: int) -> str:
        """Describe a token beyond the model's embedding, and the way out."""
        return (
            f"the tokenizer has the token {self.tokenizer.decode([token_id])!r} ({token_id}), and "
            f"the model's embedding has {self.vocabulary} rows, numbered from 0: use "
            "the tokenizer that belongs to the model, or resize the embedding "
            "(model.resize_token_embeddings(len(tokenizer)), then save both)"
        )

    def _known_ids(self, probe: Example) -> list[int] | None:
        """A probe's prompt, with a system message if the template needs one; None if refused."""
        try:
            return self.prompt_ids(probe)
        except InputError:
            return None if self.system else replace(self, system=_PROBE)._known_ids(probe)

    def _probe(self, prompt: str) -> tuple[str, str]:
        """A prompt as the template renders it, and the dialogue with the answer _PROBE."""
        asked = Example("chat", [{"role": "user", "content": prompt}], _PROBE)
        try:
            return self._prompt_text(asked), self._answered_text(asked, _PROBE_ANSWER)
        except RowError:
            return ("", "") if self.system else replace(self, system=_PROBE)._probe(prompt)

    def prompt_starts_dialogue(self) -> bool:
        """Whether the rendered prompt is a prefix of the rendered dialogue with an answer."""
        if not self.has_template:
            return True
        asked, answered = self._probe(_PROBE)
        return answered.startswith(asked)

    @cached_property
    def joint(self) -> str:
        """White space that the template puts between its generation prompt and an answer.

        Empty if the tokenizer adds it itself, as those do that prefix words with a space.
        """
        asked, answered = self._probe("a")
        between = answered[len(asked) :].partition(_PROBE)[0]
        if not answered.startswith(asked) or not between.isspace():
            return ""
        before, whole, alone = map(self._ids, (asked, f"{asked}{between}{_PROBE}", _PROBE))
        return "" if whole == before + alone else between

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        texts = {token.content for token in added if token.special}
        texts.update(self.tokenizer.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")

    def special_token_in(self, item: Example | PreferencePair) -> str | None:
        """A special token in a row's text, which the tokenizer would parse as one, or None."""
        found = self._special.search(json.dumps(asdict(item), ensure_ascii=False, default=str))
        return found[0] if found else None

    def admit(self, example: Example, *, answered: bool = True) -> Example:
        """The example with its reference as the model should write it.

        Args:
            example: the example.
            answered: whether its reference will be tokenised; false for test rows to be answered.

        Raises:
            RowError: if the chat template refuses the row, leaves out a part of it, or does not
                render the answer after its generation prompt.
        """
        messages = (*example.messages, example.answer)
        rich = any(message and _is_rich(message) for message in messages)
        if not self.has_template:
            if example.tools or rich:
                raise RowError("", _NO_TEMPLATE)
            return example
        asked = self._prompt_text(example)
        self._check_complete(example, asked)
        try:
            text = self._rendered_answer(
                example, asked, example.answer or _plain_answer(example.reference)
            )
        except RowError:
            if answered:
                raise
            return example
        return replace(example, reference=text, answer=None)

    def admit_pair(self, pair: PreferencePair) -> PreferencePair:
        """The pair with its answers as the model should write them; raises as `admit`."""
        example = self.admit(pair.example)
        if not self.has_template:
            if pair.answers:
                raise RowError("", _NO_TEMPLATE)
            return pair
        answers = pair.answers or (_plain_answer(pair.chosen), _plain_answer(pair.rejected))
        asked = self._prompt_text(example)
        chosen, rejected = (self._rendered_answer(example, asked, answer) for answer in answers)
        return PreferencePair(example, chosen, rejected)

    def _check_complete(self, example: Example, asked: str) -> None:
        """Raise RowError if the template leaves out a message, tools, their calls, or reasoning."""
        self._check_roles([message["role"] for message in example.messages])
        for tool in example.tools or ():
            _check_part(tool.get("function", tool)["name"], asked)
        if example.tools and self._renders_same(asked, example.messages, None):
            raise RowError("", f"{_LEAVES_OUT} tools")
        for at, message in enumerate(example.messages):
            for part, other in _parts_of(message):
                if part == message.get("reasoning_content") and _READS_REASONING.search(
                    self._template
                ):
                    continue  # templates may drop earlier reasoning
                changed = [*example.messages[:at], other, *example.messages[at + 1 :]]
                _check_part(part, asked)
                if self._renders_same(asked, changed, example.tools):
                    raise RowError("", f"{_LEAVES_OUT} {part!r:.80}")

    def _renders_same(self, text: str, messages: Messages, tools: Any) -> bool:
        """Whether a dialogue renders to this prompt: short parts would be found in any text."""
        try:
            return self._render(messages, tools, ask=True) == text
        except RowError:
            return False

    def _check_roles(self, roles: Sequence[str]) -> None:
        """Raise RowError if the template drops a message of dialogues with these roles."""
        lost = self._lost.get(tuple(roles))
        if lost is None:
            messages: Messages = [{"role": role, "content": "a"} for role in roles]
            messages = with_system(messages, self.system and "a")
            try:
                text = self._render(messages, None, ask=True)
            except RowError:  # such as of a tool's result without a call
                messages, text = [], ""
            other = [
                [*messages[:at], {**one, "content": "b"}, *messages[at + 1 :]]
                for at, one in enumerate(messages)
            ]
            missing = [
                at for at, changed in enumerate(other) if self._renders_same(text, changed, None)
            ]
            lost = self._lost[tuple(roles)] = messages[missing[0]]["role"] if missing else ""
        if lost:
            raise RowError("", f"{_LEAVES_OUT} the {lost} message")

    def _rendered_answer(self, example: Example, asked: str, answer: Message) -> str:
        """An answer as the template renders it after the prompt `asked`, without the end of turn.

        Raises:
            RowError: if the template does not render it there, or leaves out a part of it.
        """
        whole = self._answered_text(example, answer)
        if not _is_rich(answer):
            return self._rendered_text(example, asked, answer["content"], whole)
        if not whole.startswith(asked):
            raise RowError("", f"{_MISPLACED}, which ends with {asked[-40:]!r}; {_WAY_OUT}")
        text, end, _ = whole[len(asked) :].rpartition(self.end_of_turn)
        text = (text if end else whole[len(asked) :]).strip()
        for part, other in _parts_of(answer):
            _check_part(part, text)
            if self._answered_text(example, other) == whole:
                raise RowError("", f"{_LEAVES_OUT} {part!r:.80}")
        return text

    def _rendered_text(self, example: Example, asked: str, text: str, whole: str) -> str:
        """A plain answer, without the opening of its reasoning if the prompt already has that."""
        after = whole.removeprefix(asked).rpartition(self.end_of_turn)[0]
        if whole.startswith(asked) and after.strip() == text.strip():
            return text  # also if the template finds reasoning in the text
        self._check_plain_answer(example, asked, text)
        opened = _OPENED.search(asked.rstrip())
        if opened and text.startswith(opened[0]) and _closing(opened) in text:
            return text[len(opened[0]) :].lstrip()
        return text

    def _check_plain_answer(self, example: Example, asked: str, text: str) -> None:
        """Raise RowError if the template puts more than white space around a plain answer."""
        before, found, after = self._answered_text(example, _PROBE_ANSWER).rpartition(_PROBE)
        if not found:
            raise RowError("", "the model's chat template does not render answers")
        if before.startswith(asked):
            between = before[len(asked) :]
        else:  # earlier turns may be rendered differently, but the answer's turn must start alike
            question = example.messages[-1]["content"].strip()
            header = asked[asked.rfind(question) + len(question) :] if question in asked else asked
            header = _EMPTY_BLOCK.sub("", header).rstrip()
            opened = _OPENED.search(header)
            if opened and _closing(opened) in text:
                header = header[: opened.start()].rstrip()  # the answer has its own reasoning
            if not before.rstrip().endswith(header):
                raise RowError("", f"{_MISPLACED}, which ends with {header[-40:]!r}; {_WAY_OUT}")
            between = ""
        after, end, _ = after.partition(self.end_of_turn)
        if between.strip() or (end and after.strip()):
            which = f"{between!r:.80} before it" if between.strip() else f"{after!r:.80} after it"
            raise RowError("", f"{_MISPLACED}: it puts {which}; {_WAY_OUT}")

    def fit(self, example: Example) -> Example:
        """Return the example, its prompt cut to `max_prompt_length` if its task allows cuts."""
        if self.max_prompt_length is None or self.fits(self.prompt_ids(example)):
            return example
        cuts = example.shorter()
        longest = bisect_left(cuts, True, key=lambda cut: not self.fits(self.prompt_ids(cut())))
        return cuts[longest - 1]() if longest else example

    def fits(self, prompt: list[int]) -> bool:
        """Whether a prompt is within `max_prompt_length`."""
        return self.max_prompt_length is None or len(prompt) <= self.max_prompt_length

    def prompt_ids(self, example: Example) -> list[int]:
        """Token ids of the prompt, ready for the answer's first token."""
        if not self.has_template:
            before = f"{self.system}\n\n" if self.system and not self.plain else ""
            return self._interned(self.tokenizer(f"{before}{example.plain_prompt}")["input_ids"])
        try:
            text = self._prompt_text(example)
        except RowError as error:
            raise InputError(f"a row: {error}") from None
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return self._interned(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt_text(self, example: Example) -> str:
        return self._render(example.messages, example.tools, ask=True)

    def _answered_text(self, example: Example, answer: Message) -> str:
        return self._render([*example.messages, answer], example.tools)

    def _render(self, messages: Messages, tools: Any, *, ask: bool = False) -> str:
        """Render a dialogue with the chat template.

        Raises:
            RowError: if the template refuses it, or fails.
        """
        how: dict[str, Any] = {**self._date_variables, **self.template_options}
        if "strftime_now" in self._template:
            how["chat_template"] = self._date_macro + self.tokenizer.get_chat_template(None, tools)
        try:
            return self.tokenizer.apply_chat_template(
                with_system(messages, self.system),
                tools=tools,
                tokenize=False,
                add_generation_prompt=ask,
                **how,
            )
        except Exception as error:
            if type(error).__module__.split(".")[0] != "jinja2" and type(error) is not TypeError:
                raise
            raise RowError("", f"{_REFUSES}: {error}") from None

    @property
    def _template(self) -> str:
        return str(self.tokenizer.chat_template)

    def check_options(self) -> None:
        """Raise InputError for options that the chat template does not read."""
        known = self._template if self.has_template else ""
        for name in self.template_options:
            if not re.search(rf"\b{re.escape(name)}\b", known):
                raise InputError(
                    f"chat_template_kwargs: the model's chat template does not read {name!r}; "
                    "remove it, or correct its spelling"
                )

    @property
    def reads_date(self) -> bool:
        """Whether the chat template may print the date."""
        return "strftime_now" in self._template or "date_string" in self._template

    @cached_property
    def _date_variables(self) -> dict[str, str]:
        """The date as text, for templates with a hard-coded default date."""
        if self.template_date == TEMPLATE_DATE:
            return {}
        return {"date_string": date.fromisoformat(self.template_date).strftime("%d %b %Y")}

    @cached_property
    def _date_macro(self) -> str:
        """A Jinja macro that replaces transformers' strftime_now, which reads the clock."""
        day = datetime.fromisoformat(self.template_date)
        named = {f"%{flag}{letter}": "" for flag in ("-", "") for letter in _DIRECTIVES}
        parts = {"%%": "\1", **{name: day.strftime(name) for name in named}, "\1": "%"}
        steps = (f"|replace({json.dumps(name)}, {json.dumps(to)})" for name, to in parts.items())
        return (
            f"{{%- macro strftime_now(format) -%}}{{{{ format{''.join(steps)} }}}}"
            "{%- endmacro %}\n"
        )

    def answer_ids(self, example: Example, text: str) -> list[int]:
        """Token ids of an answer, with the end-of-turn token."""
        before = self.joint if self.has_template else example.plain_separator
        return [*self._ids(before + text), self.end_of_turn_id]

    def own_answer_ids(self, ids: list[int], *, finished: bool) -> list[int]:
        """Generated ids for training: one end-of-turn token, or none if the answer was cut."""
        return self._interned([*ids[:-1], self.end_of_turn_id] if finished else ids)

    def _interned(self, ids: list[int]) -> list[int]:
        """The same ids as shared int objects: 8 bytes per token instead of 36."""
        return [self._ints.setdefault(number, number) for number in ids]

    def answer_text(self, ids: list[int]) -> str:
        """The text of generated ids, without special tokens or surrounding space."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _plain_answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _is_rich(message: Message) -> bool:
    """Whether a message has more than text, which only a chat template can render."""
    return message["role"] == "tool" or not {"tool_calls", "reasoning_content"}.isdisjoint(message)


def _closing(opened: re.Match[str]) -> str:
    """What closes a block of reasoning."""
    return f"{opened[1]}/{opened[2]}{opened[3]}"


def _parts_of(message: Message) -> Iterator[tuple[str, Message]]:
    """Yield each part of a rich message that a template may drop, and the message changed there."""
    if not _is_rich(message):
        return
    for key in ("content", "reasoning_content"):
        if message.get(key, "").strip():
            yield message[key], {**message, key: _PROBE}
    calls = message.get("tool_calls", ())
    other = [{**call, "function": {**call["function"], "name": _PROBE}} for call in calls]
    for call in calls:
        yield call["function"]["name"], {**message, "tool_calls": other}


def _check_part(part: str, text: str) -> None:
    """Raise RowError for a part that a text contains neither literally nor escaped as in JSON."""
    part = part.strip()
    if part not in text and json.dumps(part, ensure_ascii=False)[1:-1] not in text:
        raise RowError("", f"{_LEAVES_OUT} {part!r:.80}")


def template_terms(options: TemplateOptions) -> TemplateTerms:
    """The arguments of a Renderer that a step's options set for the chat template."""
    return {
        "template_date": options.get("template_date", TEMPLATE_DATE),
        "template_options": options.get("chat_template_kwargs", {}),
    }


def renderer_for(step: StepContext[RenderedModelOptions]) -> Renderer:
    """Return a step's renderer, after comparing it with those of its inputs.

    Raises:
        StepFailedError: if its rows or weights were made with a different rendering.
    """
    from pipeline.models.load import end_ids_for, tokenizer_for, vocabulary_for, window_for

    renderer = Renderer(
        tokenizer_for(step),
        step.options["system"],
        step.options["max_prompt_length"],
        end_ids_for(step),
        window_for(step),
        vocabulary_for(step),
        **template_terms(step.options),
    )
    renderer.check_options()
    renderer.check_vocabulary()
    if renderer.has_template and renderer.reads_date:
        step.metrics["template_date"] = renderer.template_date
    template = step.options.get("chat_template")
    if template is not None and renderer.tokenizer.chat_template != template:
        step.warn(
            "the model has its own chat template, which is used: the recipe's chat_template is for "
            "models that have none"
        )
    ours = step.metrics["rendering"] = renderer.digest()
    if renderer.digest() != ours:
        raise InputError(
            "the model's chat template does not write the same twice (is there something random in "
            "it?): take that out of its chat_template.jinja or tokenizer_config.json"
        )
    for name, folder in step.input_folders().items():
        if artifact.read_record(folder)["metrics"].get("rendering") not in (None, ours):
            raise StepFailedError(
                f"its input {name} ({folder}) was made with another chat template or tokenizer: "
                "training, generation and evaluation must share one; delete that folder and run "
                "the same command again"
            )
    return replace(renderer, plain=True) if step.options.get("few_shot") else renderer
