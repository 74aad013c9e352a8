"""Text to tokens, in one place: training, generation and evaluation all come through here.

Prompt and answer are tokenised apart and joined as ids, so the prompt is always a prefix of the
row. Decisions: (1) a model with a chat template gets the template, one without gets the recipe's
`chat_template:`, or else the task's plain prompt; (2) the answer ends with exactly one end-of-turn
token: the special token that the template puts after an assistant turn, else the tokenizer's end
token; (3) a beginning token is added once, by the template or by the tokenizer, never by both;
(4) a prompt longer than `max_prompt_length` is cut alike in training, generation and evaluation
(see Example.shorter).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.data.tasks import Example, with_system
from pipeline.errors import InputError, StepFailedError
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext

_PROBE = "bashrac-probe"


@dataclass
class Renderer:
    """Renders examples for one tokenizer.

    Attributes:
        tokenizer: a transformers tokenizer.
        system: a system message put before every prompt that has none, or None.
        max_prompt_length: longest prompt in tokens, or None.
        end_ids: tokens that the model's generation config names as ends.
        window: most tokens the model can read, or None where its config does not say.
        plain: whether a chat template and the system message are left aside, as lm-eval does.
        vocabulary: how many token ids the model can write, or None where its config does not say.
    """

    tokenizer: Any
    system: str | None = None
    max_prompt_length: int | None = None
    end_ids: tuple[int, ...] = ()
    window: int | None = None
    plain: bool = False
    vocabulary: int | None = None

    @cached_property
    def _objects(self) -> dict[int, int]:
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
            turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False)
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
        ids = [(self.prompt_ids(probe), self.answer_ids(probe, _PROBE)) for probe in examples]
        return artifact.fingerprint(ids)

    def prompt_starts_dialogue(self) -> bool:
        """Whether the template writes the same before an answer as it does to ask for one."""
        if not self.has_template:
            return True
        prompt = [{"role": "user", "content": _PROBE}]
        asked, answered = (
            self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
            for messages, options in (
                (prompt, {"add_generation_prompt": True}),
                ([*prompt, {"role": "assistant", "content": _PROBE}], {}),
            )
        )
        return answered.startswith(asked)

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
        messages = with_system(example.messages, self.system)
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja2 errors, which templates raise on purpose
            if type(error).__module__.split(".")[0] != "jinja2":
                raise
            raise InputError(f"the model's chat template refuses a row: {error}") from None
        return self._shared(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer_ids(self, example: Example, text: str) -> list[int]:
        """Token ids of an answer, ended by the end-of-turn token."""
        joined = text if self.has_template else example.plain_separator + text
        ids = self.tokenizer(joined, add_special_tokens=False)["input_ids"]
        return self._shared([*ids, self.end_of_turn_id])

    def own_answer_ids(self, ids: list[int], *, finished: bool) -> list[int]:
        """Generated ids as training reads them: one end-of-turn token, none where cut."""
        return self._shared([*ids[:-1], self.end_of_turn_id] if finished else ids)

    def _shared(self, ids: list[int]) -> list[int]:
        """The same ids, each as the one object that stands for it: 8 bytes a token, not 36."""
        return [self._objects.setdefault(number, number) for number in ids]

    def answer_text(self, ids: list[int]) -> str:
        """The text of generated ids, without special tokens or surrounding space."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


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
        vocabulary=vocabulary_for(step),
    )
    template = step.options.get("chat_template")
    if template is not None and renderer.tokenizer.chat_template != template:
        step.warn(
            "the model has a chat template of its own, which is used: the recipe's chat_template "
            "is for models that have none"
        )
    ours = step.metrics["rendering"] = renderer.digest()
    for name, folder in step.input_folders().items():
        if artifact.read_record(folder)["metrics"].get("rendering") not in (None, ours):
            raise StepFailedError(
                f"its input {name} ({folder}) was made with another chat template or tokenizer: "
                "training, generation and evaluation must share one; delete that folder and run "
                "the same command again"
            )
    return replace(renderer, plain=True) if step.options.get("few_shot") else renderer
