"""How many tokens each step of a plan trains on, reads and writes, told from the data alone.

Rows that a stage writes itself do not exist yet: they are taken to be as long as the references,
and answers to be as long as they may get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pipeline.data.load import TokenRow, fit_prompt, load_examples, load_preferences, tokenise
from pipeline.data.render import Renderer, template_terms
from pipeline.data.tasks import Example
from pipeline.models.load import end_ids, load_tokenizer, window_of
from pipeline.models.trust import Trust
from pipeline.plan.plan import Plan
from pipeline.recipe.schema import Recipe
from pipeline.stages.dpo import TRAIN as TRAIN_DPO
from pipeline.steps.spec import StepSpec

Item = TypeVar("Item")
# Rows that are tokenised; of more, this many, and the longest ones by their text.
_MOST_ROWS, _LONGEST_ROWS = 5000, 64
_DEFAULT_EPOCHS = 3.0  # of transformers (a test compares)


@dataclass(frozen=True)
class Work:
    """What a step has to do, in tokens of all processes.

    Attributes:
        trained: tokens of the rows it trains on, over all epochs, prompts included.
        read: tokens it reads to write rows.
        written: tokens it writes; with `at_most`, it may be fewer.
        rows: rows, pairs, or answers.
        longest: tokens of the longest row, prompt and answer.
        longest_prompt: tokens of the longest prompt.
        assumes: whether rows that do not exist yet are taken to be as long as the references.
        at_most: whether it may be less.
        sampled: whether counts come from a sample of the rows.
    """

    trained: int = 0
    read: int = 0
    written: int = 0
    rows: int = 0
    longest: int = 0
    longest_prompt: int = 0
    assumes: bool = False
    at_most: bool = False
    sampled: bool = False

    @property
    def timed(self) -> tuple[int, str]:
        """The tokens that a step's time is reckoned by, and what it does with them."""
        for count, word in ((self.trained, "trained"), (self.written, "written")):
            if count:
                return count, word
        return self.read, "read"


@dataclass(frozen=True)
class _Lengths:
    """Rows of a source: how many, and the sums and maxima of their tokens."""

    rows: int
    prompts: int
    answers: int
    longest: int
    longest_prompt: int
    sampled: bool

    @property
    def tokens(self) -> int:
        """Prompts and answers."""
        return self.prompts + self.answers


def terms_of(recipe: Recipe) -> dict[str, Any]:
    """On what terms the recipe's model is read: revision and trust."""
    return {"revision": recipe.revision, "trust": Trust.of(recipe)}


class Workload:
    """Counts tokens of a plan's steps; each source is read once."""

    def __init__(self, plan: Plan):
        self.recipe = plan.recipe
        terms = terms_of(plan.recipe)
        model = plan.recipe.model
        self._tokenizer = load_tokenizer(
            model,
            chat_template=plan.recipe.chat_template,
            chat_template_name=plan.recipe.chat_template_name,
            **terms,
        )
        self._end_ids = end_ids(model, **terms)
        self.window = window_of(model, **terms)
        self._known: dict[str, _Lengths] = {}

    def of(self, step: StepSpec) -> Work:
        """The work of a step; nothing for steps that read no tokens."""
        if step.kind == "train":
            return self._preferences(step) if step.run == TRAIN_DPO else self._training(step)
        writers: dict[str, Callable[[StepSpec], Work]] = {
            "answers": self._answers,
            "contexts": self._contexts,
            "corrections": self._corrections,
            "gap-contexts": self._gap_contexts,
            "gap-losses": self._gap_losses,
        }
        return writers[step.kind](step) if step.kind in writers else Work()

    def _renderer(self, step: StepSpec) -> Renderer:
        options = step.options
        return Renderer(
            self._tokenizer,
            options["system"],
            options["max_prompt_length"],
            self._end_ids,
            self.window,
            plain=bool(options.get("few_shot")),
            **template_terms(options),
        )

    def _training(self, step: StepSpec) -> Work:
        found = self._references(step, "train", max_length=step.options["trainer"]["max_length"])
        ratio = step.options.get("lambda", 0.0)
        rows, tokens = (round(count * (1 + ratio)) for count in (found.rows, found.tokens))
        trained = round(tokens * self._epochs(step, rows))
        return _work(found, rows=rows, trained=trained, assumes="rows" in step.inputs)

    def _preferences(self, step: StepSpec) -> Work:
        max_length = step.options["trainer"]["max_length"]
        if "preferences" in step.locations:
            found = self._pairs(step, max_length)
            trained = round(found.tokens * self._epochs(step, found.rows))
            return _work(found, trained=trained)
        pairs = step.inputs["pairs"]
        assert isinstance(pairs, StepSpec)
        sources = [one for one in pairs.inputs.values() if isinstance(one, StepSpec)]
        found = self._references(sources[0], "train", max_length=max_length, of=step)
        rows = found.rows * len(sources)
        trained = round(2 * found.tokens * len(sources) * self._epochs(step, rows))
        return _work(found, rows=rows, trained=trained, assumes=True, at_most=True)

    def _answers(self, step: StepSpec) -> Work:
        role = "test" if "test" in step.locations else "train"
        found = self._references(step, role, max_length=None)
        count = found.rows * step.options["samples"]
        room = step.options["max_new_tokens"]
        return _work(
            found,
            rows=count,
            read=found.prompts * step.options["samples"],
            written=count * room,
            longest=found.longest_prompt + room,
            at_most=True,
        )

    def _contexts(self, step: StepSpec) -> Work:
        found = self._references(step, "train", max_length=step.options["max_length"])
        return _work(found, read=found.tokens, written=found.answers)

    def _gap_contexts(self, step: StepSpec) -> Work:
        """Every row once at each rate but 0, where nothing is written."""
        found = self._references(step, "test", max_length=step.options["max_length"])
        times = len(step.options["rates"]) - 1
        counts = {"rows": found.rows, "read": found.tokens, "written": found.answers}
        return _work(found, **{name: count * times for name, count in counts.items()})

    def _gap_losses(self, step: StepSpec) -> Work:
        contexts = step.inputs["contexts"]
        assert isinstance(contexts, StepSpec)
        found = self._references(contexts, "test", max_length=contexts.options["max_length"])
        times = len(contexts.options["rates"])
        return _work(found, rows=found.rows * times, read=found.tokens * times)

    def _corrections(self, step: StepSpec) -> Work:
        options = step.options
        found = self._references(
            step, "train", max_length=options["max_length"], shown=options["shown_prompt"]
        )
        if options["correction"] == "token":
            return _work(found, read=found.tokens, written=found.answers, assumes=True)
        room = options["max_new_tokens"]
        return _work(
            found,
            read=found.prompts,
            written=found.rows * room,
            longest=found.longest_prompt + room,
            assumes=True,
            at_most=True,
        )

    def _references(
        self, step: StepSpec, role: str, *, max_length: int | None, shown: str | None = None,
        of: StepSpec | None = None,
    ) -> _Lengths:  # fmt: skip
        """Lengths of prompts and references of a source that a step reads."""
        place, reader = step.locations[role], of or step
        renderer = self._renderer(reader)
        task, shots = step.options["task"], step.locations.get("shots")
        turns = step.options.get("train_on", "last")
        key = repr((place, task, shots, turns, max_length, shown, renderer.system, renderer.plain,
                    renderer.max_prompt_length, template_terms(reader.options)))  # fmt: skip
        if key not in self._known:
            answered = role == "train" or max_length is not None
            examples = load_examples(
                place, task, _ignore, renderer, answered=answered, train_on=turns
            )
            if shots:
                solved = load_examples(shots, task)
                examples = [example.with_shots(solved) for example in examples]
            chosen, scale = _sample(examples, _text_length)
            rows, counts = tokenise(chosen, renderer, max_length=max_length)
            sizes = [self._sizes(row, renderer, shown) for row in rows]
            dropped = counts["dropped"] / len(chosen)
            self._known[key] = _lengths(sizes, scale, round(len(examples) * (1 - dropped)))
        return self._known[key]

    @staticmethod
    def _sizes(row: TokenRow, renderer: Renderer, shown: str | None) -> tuple[int, int]:
        if shown is None:
            return len(row.prompt), len(row.answer)
        example = row.example
        whole = example.shown(shown, answer=example.reference, end=renderer.end_of_turn)
        return len(renderer.prompt_ids(whole)), len(row.answer)

    def _pairs(self, step: StepSpec, max_length: int | None) -> _Lengths:
        """Lengths of both sides of the pairs of a source; the prompt counts twice."""
        place, task, renderer = (
            step.locations["preferences"],
            step.options["task"],
            self._renderer(step),
        )
        key = repr((place, task, max_length, renderer.system, renderer.max_prompt_length, "pairs",
                    template_terms(step.options)))  # fmt: skip
        if key not in self._known:
            pairs = load_preferences(place, task, _ignore, renderer)
            chosen, scale = _sample(
                pairs,
                lambda pair: _text_length(pair.example) + max(len(pair.chosen), len(pair.rejected)),
            )
            sizes, longest = [], 0
            for pair in chosen:
                fitted = fit_prompt(pair.example, renderer, max_length=max_length)
                if fitted is None:
                    continue
                example, prompt, room = fitted
                answers = [
                    min(len(renderer.answer_ids(example, text)), room)
                    for text in (pair.chosen, pair.rejected)
                ]
                sizes.append((2 * len(prompt), sum(answers)))
                longest = max(longest, len(prompt) + max(answers))
            found = _lengths(sizes, scale, round(len(pairs) * len(sizes) / len(chosen)))
            self._known[key] = replace(found, longest=longest)
        return self._known[key]

    def _epochs(self, step: StepSpec, rows: int) -> float:
        """How often training reads every row."""
        trainer = {**step.options["trainer"], **step.runtime_options.get("trainer", {})}
        steps = trainer.get("max_steps") or -1
        if steps > 0:
            return steps / max(math.ceil(rows / step.options["batch_size"]), 1)
        return float(trainer.get("num_train_epochs", _DEFAULT_EPOCHS))


def _ignore(warning: str) -> None:
    """The step that reads the rows says it."""


def _text_length(example: Example) -> int:
    texts = [message["content"] for message in example.messages]
    return sum(map(len, texts)) + len(example.reference) + len(example.shots)


def _sample(items: Sequence[Item], length: Callable[[Item], int]) -> tuple[list[Item], float]:
    """Return the items to look at, the longest last, and how many each of the others stands for."""
    if len(items) <= _MOST_ROWS:
        return list(items), 1.0
    every = len(items) / _MOST_ROWS
    some = [items[int(number * every)] for number in range(_MOST_ROWS)]
    return some + sorted(items, key=length)[-_LONGEST_ROWS:], every


def _lengths(sizes: list[tuple[int, int]], scale: float, rows: int) -> _Lengths:
    """Sum up (prompt, answer) sizes; the longest rows of a sample count for maxima only."""
    counted = sizes if scale == 1 else sizes[:-_LONGEST_ROWS]
    share = rows / max(len(counted), 1)
    return _Lengths(
        rows=rows,
        prompts=round(share * sum(prompt for prompt, _ in counted)),
        answers=round(share * sum(answer for _, answer in counted)),
        longest=max((prompt + answer for prompt, answer in sizes), default=0),
        longest_prompt=max((prompt for prompt, _ in sizes), default=0),
        sampled=scale != 1,
    )


def _work(found: _Lengths, **more: Any) -> Work:
    names = ("rows", "longest", "longest_prompt", "sampled")
    return Work(**{name: getattr(found, name) for name in names} | more)
