"""Text to tokens, in one place: training, generation and evaluation all come through here.

Prompt and answer are tokenised apart and joined as ids, so the prompt is always a prefix of the
row. Decisions: (1) a model with a chat template gets the template, one without gets the recipe's
`chat_template:`, or else the task's plain prompt; (2) the answer ends with exactly one end-of-turn
token: the special token that the template puts after an assistant turn, else the tokenizer's end
token; (3) a beginning token is added once, by the template or by the tokenizer, never by both;
(4) a prompt longer than `max_prompt_length` is cut alike in training, generation and evaluation
(see Example.shorter); (5) a template that prints today's date prints `template_date`; (6) an answer
must follow the generation prompt as the template itself writes it there, or the row is refused;
reasoning and calls of tools are text that the template writes.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.data.tasks import Example, Message, Messages, PreferencePair, RowError, with_system
from pipeline.errors import InputError, StepFailedError
from pipeline.recipe.schema import TEMPLATE_DATE
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext

_PROBE = "bashrac-probe"
_PROBE_ANSWER: Message = {"role": "assistant", "content": _PROBE}
_READS_REASONING = re.compile("reasoning|thinking")
# What opens and closes a model's reasoning: <think> and </think>, [THINK] and [/THINK].
_EMPTY_BLOCK = re.compile(r"<([\w|-]+)>\s*</\1>|\[([A-Z]+)\]\s*\[/\2\]")
_OPENED = re.compile(r"(<|\[)([\w|-]+)(>|\])\Z")
_REFUSES = "the model's chat template refuses it"
_LEAVES_OUT = "the model's chat template leaves out"
_APART = "the model's chat template does not write the answer where it asks for one"
_WAY_OUT = (
    "give rows with reasoning_content, or chat_template_kwargs: {enable_thinking: false} where the "
    "template knows that, or take a model whose generation prompt is how its answered turns begin"
)
_NO_TEMPLATE = "has tools, calls or reasoning, and the model no chat template that would write them"
_DIRECTIVES = "aAbBcdDeFfgGhHIjklmMnpPrRStTuUVwWxXyYzZ"


@dataclass
class Renderer:
    """Renders examples for one tokenizer.

    Attributes:
        tokenizer: a transformers tokenizer.
        system: a system message put before every prompt that has none, or None.
        max_prompt_length: longest prompt in tokens, or None.
        end_ids: tokens that the model's generation config names as ends.
        window: most tokens the model can read, or None where its config does not say.
        vocabulary: how many tokens the model has a row for, or None where its files do not say.
        plain: whether a chat template and the system message are left aside, as lm-eval does.
        template_date: the day that it is for the chat template, as YYYY-MM-DD.
        template_options: what else the chat template is told, such as `enable_thinking`.
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
    def _objects(self) -> dict[int, int]:
        return {}

    @cached_property
    def _lost(self) -> dict[tuple[str, ...], str]:
        """Roles of a dialogue -> the role of a message that the chat template leaves out, or ''."""
        return {}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """All special tokens: those with a name, and those that the tokenizer only marks (roles).

        `all_special_ids` of transformers 5 holds the former only.
        """
        added = self.tokenizer.added_tokens_decoder.items()
        marked = {number for number, token in added if token.special}
        return frozenset(marked | set(self.tokenizer.all_special_ids))

    @cached_property
    def ids_without_token(self) -> tuple[int, ...]:
        """Ids that the model can write and the tokenizer does not know.

        Vocabularies are often padded to a round number; what stands there means nothing.
        """
        known = set(self.tokenizer.get_vocab().values())
        return tuple(number for number in range(self.vocabulary or 0) if number not in known)

    @property
    def has_template(self) -> bool:
        """Whether prompts come from the model's chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None)) and not self.plain

    @cached_property
    def end_of_turn_id(self) -> int:
        """The token that ends an answer.

        Raises:
            InputError: when the tokenizer has no end token and the template shows none.
        """
        if self.has_template:
            _, text = self._probe("a")
            after = self.tokenizer(text.split(_PROBE)[-1], add_special_tokens=False)["input_ids"]
            # A template may put white space before the token, and text of a next turn after it.
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
        """Sha256 of the tokens that probe dialogues become: the same for the same rendering."""
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
        """Refuse a tokenizer whose padding or template needs tokens that the model does not have.

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
        """Return the largest of some ids where the model has no row for it."""
        largest = max(ids, default=0)
        return largest if self.vocabulary is not None and largest >= self.vocabulary else None

    def describe_unknown(self, token_id: int) -> str:
        """Return the sentence on a token that the model has no row for."""
        return (
            f"the tokenizer has the token {self.tokenizer.decode([token_id])!r} ({token_id}), and "
            f"the model's embedding has {self.vocabulary} rows, numbered from 0: take "
            "the tokenizer that belongs to the model, or give it rows "
            "(model.resize_token_embeddings(len(tokenizer)), then save both)"
        )

    def _known_ids(self, probe: Example) -> list[int] | None:
        """A probe's prompt, with a system message if the template demands one; None if refused."""
        try:
            return self.prompt_ids(probe)
        except InputError:
            return None if self.system else replace(self, system=_PROBE)._known_ids(probe)

    def _probe(self, prompt: str) -> tuple[str, str]:
        """A prompt as the template writes it, and the same once it is answered by _PROBE."""
        asked = Example("chat", [{"role": "user", "content": prompt}], _PROBE)
        try:
            return self._prompt_text(asked), self._answered_text(asked, _PROBE_ANSWER)
        except RowError:
            return ("", "") if self.system else replace(self, system=_PROBE)._probe(prompt)

    def prompt_starts_dialogue(self) -> bool:
        """Whether the template writes the same before an answer as it does to ask for one."""
        if not self.has_template:
            return True
        asked, answered = self._probe(_PROBE)
        return answered.startswith(asked)

    @cached_property
    def joint(self) -> str:
        """White space that the template writes between its generation prompt and an answer.

        Empty where the tokenizer adds it by itself, as those do whose words begin with a space.
        """
        asked, answered = self._probe("a")
        between = answered[len(asked) :].partition(_PROBE)[0]
        if not answered.startswith(asked) or not between.isspace():
            return ""
        before, whole, alone = map(self._ids, (asked, f"{asked}{between}{_PROBE}", _PROBE))
        return "" if whole == before + alone else between

    @cached_property
    def _special(self) -> re.Pattern[str]:
        texts = {one.content for one in self.tokenizer.added_tokens_decoder.values() if one.special}
        texts.update(self.tokenizer.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")

    def special_token_in(self, item: Example | PreferencePair) -> str | None:
        """A special token in the text of a row, where it acts as one; None where there is none."""
        found = self._special.search(json.dumps(asdict(item), ensure_ascii=False, default=str))
        return found[0] if found else None

    def admit(self, example: Example, *, answered: bool = True) -> Example:
        """The example with its reference as the model should write it.

        `answered` is false where references are not tokenised, as where test rows are answered.

        Raises:
            RowError: when the chat template refuses the row, leaves out part of it, or does not
                write the answer where it asks for one.
        """
        rich = [one for one in (*example.messages, example.answer) if one and _is_rich(one)]
        if not self.has_template:
            if example.tools or rich:
                raise RowError("", _NO_TEMPLATE)
            return example
        asked = self._prompt_text(example)
        self._check_written(example, asked)
        try:
            text = self._as_written(example, asked, example.answer or _says(example.reference))
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
        answers = pair.answers or (_says(pair.chosen), _says(pair.rejected))
        asked = self._prompt_text(example)
        chosen, rejected = (self._as_written(example, asked, answer) for answer in answers)
        return PreferencePair(example, chosen, rejected)

    def _check_written(self, example: Example, asked: str) -> None:
        """Raise RowError where the template leaves out tools, their calls and results, thoughts."""
        self._check_roles([message["role"] for message in example.messages])
        for tool in example.tools or ():
            _check_part(tool.get("function", tool)["name"], asked)
        if example.tools and self._writes(asked, example.messages, None):
            raise RowError("", f"{_LEAVES_OUT} tools")
        for at, message in enumerate(example.messages):
            for part, other in _parts_of(message):
                if part == message.get("reasoning_content") and _READS_REASONING.search(
                    self._template
                ):
                    continue  # it may leave out earlier thoughts
                changed = [*example.messages[:at], other, *example.messages[at + 1 :]]
                _check_part(part, asked)
                if self._writes(asked, changed, example.tools):
                    raise RowError("", f"{_LEAVES_OUT} {part!r:.80}")

    def _writes(self, text: str, messages: Messages, tools: Any) -> bool:
        """Whether a prompt is written so, whatever it says: short parts are found in any text."""
        try:
            return self._written(messages, tools, ask=True) == text
        except RowError:
            return False

    def _check_roles(self, roles: Sequence[str]) -> None:
        """Raise RowError where the template leaves out messages, in dialogues of these roles."""
        lost = self._lost.get(tuple(roles))
        if lost is None:
            messages: Messages = [{"role": role, "content": "a"} for role in roles]
            messages = with_system(messages, self.system and "a")
            try:
                text = self._written(messages, None, ask=True)
            except RowError:  # such as of a tool's result that nothing has called for
                messages, text = [], ""
            other = [
                [*messages[:at], {**one, "content": "b"}, *messages[at + 1 :]]
                for at, one in enumerate(messages)
            ]
            missing = [at for at, changed in enumerate(other) if self._writes(text, changed, None)]
            lost = self._lost[tuple(roles)] = messages[missing[0]]["role"] if missing else ""
        if lost:
            raise RowError("", f"{_LEAVES_OUT} the {lost} message")

    def _as_written(self, example: Example, asked: str, answer: Message) -> str:
        """An answer as the template writes it after the prompt `asked`, without the end of turn.

        Raises:
            RowError: when it does not write it there, or leaves out part of it.
        """
        whole = self._answered_text(example, answer)
        if not _is_rich(answer):
            return self._text_as_written(example, asked, answer["content"], whole)
        if not whole.startswith(asked):
            raise RowError("", f"{_APART}: it asks with {asked[-40:]!r}; {_WAY_OUT}")
        text, end, _ = whole[len(asked) :].rpartition(self.end_of_turn)
        text = (text if end else whole[len(asked) :]).strip()
        for part, other in _parts_of(answer):
            _check_part(part, text)
            if self._answered_text(example, other) == whole:
                raise RowError("", f"{_LEAVES_OUT} {part!r:.80}")
        return text

    def _text_as_written(self, example: Example, asked: str, text: str, whole: str) -> str:
        """A plain answer, without what opens its thoughts if the prompt has written that."""
        after = whole.removeprefix(asked).rpartition(self.end_of_turn)[0]
        if whole.startswith(asked) and after.strip() == text.strip():
            return text  # also where the template finds thoughts in the text
        self._check_joint(example, asked, text)
        opened = _OPENED.search(asked.rstrip())
        if opened and text.startswith(opened[0]) and _closing(opened) in text:
            return text[len(opened[0]) :].lstrip()
        return text

    def _check_joint(self, example: Example, asked: str, text: str) -> None:
        """Raise RowError where the template has more than white space around a plain answer."""
        before, found, after = self._answered_text(example, _PROBE_ANSWER).rpartition(_PROBE)
        if not found:
            raise RowError("", "the model's chat template does not write answers")
        if before.startswith(asked):
            between = before[len(asked) :]
        else:  # it may write all that is before otherwise, but must begin the answer's turn alike
            question = example.messages[-1]["content"].strip()
            header = asked[asked.rfind(question) + len(question) :] if question in asked else asked
            header = _EMPTY_BLOCK.sub("", header).rstrip()
            opened = _OPENED.search(header)
            if opened and _closing(opened) in text:
                header = header[: opened.start()].rstrip()  # the answer holds the thoughts itself
            if not before.rstrip().endswith(header):
                raise RowError("", f"{_APART}: it asks with {header[-40:]!r}; {_WAY_OUT}")
            between = ""
        after, end, _ = after.partition(self.end_of_turn)
        if between.strip() or (end and after.strip()):
            which = f"{between!r:.80} before it" if between.strip() else f"{after!r:.80} after it"
            raise RowError("", f"{_APART}: it writes {which}; {_WAY_OUT}")

    def fit(self, example: Example) -> Example:
        """Return the example, its prompt cut to `max_prompt_length` where its task can be cut."""
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
            return self._shared(self.tokenizer(f"{before}{example.plain_prompt}")["input_ids"])
        try:
            text = self._prompt_text(example)
        except RowError as error:
            raise InputError(f"a row: {error}") from None
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return self._shared(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt_text(self, example: Example) -> str:
        return self._written(example.messages, example.tools, ask=True)

    def _answered_text(self, example: Example, answer: Message) -> str:
        return self._written([*example.messages, answer], example.tools)

    def _written(self, messages: Messages, tools: Any, *, ask: bool = False) -> str:
        """What the chat template makes of a dialogue.

        Raises:
            RowError: when it refuses it, by an error that it raises on purpose or runs into.
        """
        how: dict[str, Any] = {**self._told, **self.template_options}
        if "strftime_now" in self._template:
            how["chat_template"] = self._clock + self.tokenizer.get_chat_template(None, tools)
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
        """Raise InputError for options that no chat template reads, which would do nothing."""
        known = self._template if self.has_template else ""
        for name in self.template_options:
            if not re.search(rf"\b{re.escape(name)}\b", known):
                raise InputError(
                    f"chat_template_kwargs: the model's chat template does not read {name!r}; "
                    "take it out, or correct its spelling"
                )

    @property
    def reads_date(self) -> bool:
        """Whether the chat template may print the day."""
        return "strftime_now" in self._template or "date_string" in self._template

    @cached_property
    def _told(self) -> dict[str, str]:
        """The date as text, for templates that have one of their own where none is given."""
        if self.template_date == TEMPLATE_DATE:
            return {}
        return {"date_string": date.fromisoformat(self.template_date).strftime("%d %b %Y")}

    @cached_property
    def _clock(self) -> str:
        """A Jinja macro in place of transformers' strftime_now, which has the time of day."""
        day = datetime.fromisoformat(self.template_date)
        named = {f"%{flag}{one}": "" for flag in ("-", "") for one in _DIRECTIVES}
        parts = {"%%": "\1", **{name: day.strftime(name) for name in named}, "\1": "%"}
        steps = (f"|replace({json.dumps(name)}, {json.dumps(to)})" for name, to in parts.items())
        return (
            f"{{%- macro strftime_now(format) -%}}{{{{ format{''.join(steps)} }}}}"
            "{%- endmacro %}\n"
        )

    def answer_ids(self, example: Example, text: str) -> list[int]:
        """Token ids of an answer, ended by the end-of-turn token."""
        before = self.joint if self.has_template else example.plain_separator
        return [*self._ids(before + text), self.end_of_turn_id]

    def own_answer_ids(self, ids: list[int], *, finished: bool) -> list[int]:
        """Generated ids as training reads them: one end-of-turn token, none where cut."""
        return self._shared([*ids[:-1], self.end_of_turn_id] if finished else ids)

    def _shared(self, ids: list[int]) -> list[int]:
        """The same ids, each as the one object that stands for it: 8 bytes a token, not 36."""
        return [self._objects.setdefault(number, number) for number in ids]

    def answer_text(self, ids: list[int]) -> str:
        """The text of generated ids, without special tokens or surrounding space."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _says(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _is_rich(message: Message) -> bool:
    """Whether a message has more than text, which a chat template must write."""
    return message["role"] == "tool" or not {"tool_calls", "reasoning_content"}.isdisjoint(message)


def _closing(opened: re.Match[str]) -> str:
    """What closes a block of reasoning."""
    return f"{opened[1]}/{opened[2]}{opened[3]}"


def _parts_of(message: Message) -> Iterator[tuple[str, Message]]:
    """What a template may leave out of a rich message, each with a message that says another."""
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
    """Raise RowError for a part that a text does not hold, as it is or as JSON writes it."""
    part = part.strip()
    if part not in text and json.dumps(part, ensure_ascii=False)[1:-1] not in text:
        raise RowError("", f"{_LEAVES_OUT} {part!r:.80}")


def template_terms(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a step's options say to the chat template, as arguments of a Renderer."""
    return {
        "template_date": options.get("template_date", TEMPLATE_DATE),
        "template_options": options.get("chat_template_kwargs", {}),
    }


def renderer_for(step: StepContext) -> Renderer:
    """Return the renderer of a step, after comparing it with those of the steps it reads.

    Raises:
        StepFailedError: when rows or weights it reads were made with another rendering.
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
            "the model has a chat template of its own, which is used: the recipe's chat_template "
            "is for models that have none"
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
