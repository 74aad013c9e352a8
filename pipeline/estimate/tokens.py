"""How many tokens each step of a plan trains on, reads and writes, counted from the data.

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
from pipeline.estimate.judging import engine_of, orders_of, template_tokens
from pipeline.models.load import Terms, end_ids, load_tokenizer, window_of
from pipeline.models.trust import Trust
from pipeline.plan.plan import Plan
from pipeline.recipe.schema import TrainerOptions
from pipeline.stages.dpo import TRAIN as TRAIN_DPO
from pipeline.steps.options import (
    AnswerOptions,
    BeginningOptions,
    ComputingOptions,
    ContextOptions,
    CorrectionOptions,
    GapContextOptions,
    RowOptions,
    TrainOptions,
)
from pipeline.steps.spec import StepSpec

Item = TypeVar("Item")
# Steps that write rows, or losses of rows, with a model.
WRITING = (
    "answers", "contexts", "corrections", "gap-contexts", "gap-losses", "recovery-beginnings",
    "recovery-answers",
)  # fmt: skip
# Rows that are tokenised; of more, this many, and the longest ones by their text.
_MOST_ROWS, _LONGEST_ROWS = 5000, 64
_DEFAULT_EPOCHS = 3.0  # of transformers (a test compares)


@dataclass(frozen=True)
class Work:
    """The tokens of a step, in all processes together.

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
        prompts: tokens of all prompts of its source.
        answers: tokens of all references of its source.
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
    prompts: int = 0
    answers: int = 0

    @property
    def tokens(self) -> int:
        """Prompts and references of its source."""
        return self.prompts + self.answers

    @property
    def timed(self) -> tuple[int, str]:
        """The tokens that a step's time is estimated from, and what it does with them."""
        if self.trained:
            return self.trained, "trained"
        return (self.written, "written") if self.written else (self.read, "read")


class Workload:
    """Counts tokens of a plan's steps; each source is read once.

    Attributes:
        terms: revision and trust, with which the recipe's model is read.
    """

    def __init__(self, plan: Plan):
        recipe = plan.recipe
        self.terms: Terms = {"revision": recipe.revision, "trust": Trust.of(recipe)}
        self._tokenizer = load_tokenizer(
            recipe.model,
            chat_template=recipe.chat_template,
            chat_template_name=recipe.chat_template_name,
            **self.terms,
        )
        self._end_ids = end_ids(recipe.model, **self.terms)
        self._window = window_of(recipe.model, **self.terms)
        self._known: dict[str, Work] = {}

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
            "recovery-beginnings": self._recovery_beginnings,
            "recovery-answers": self._recovery_answers,
        }
        if engine_of(step) in ("local", "openai"):
            return self._judged(step)
        return writers[step.kind](step) if step.kind in writers else Work()

    def _renderer(self, step: StepSpec[RowOptions]) -> Renderer:
        options = step.options
        return Renderer(
            self._tokenizer,
            options["system"],
            options["max_prompt_length"],
            self._end_ids,
            self._window,
            plain=bool(options.get("few_shot")),
            **template_terms(options),
        )

    def _training(self, step: StepSpec[TrainOptions]) -> Work:
        found = self._references(step, "train", max_length=step.options["trainer"]["max_length"])
        times = step.options.get("lambda", 0.0)
        if "rows" in step.inputs:  # of rft as many rows a prompt as it may keep
            times *= step.inputs["rows"].options.get("max_per_prompt", 1)
        times += step.options.get("references", True)
        rows, tokens = (round(count * times) for count in (found.rows, found.tokens))
        trained = round(tokens * _epochs(step, rows))
        return replace(found, rows=rows, trained=trained, assumes="rows" in step.inputs)

    def _preferences(self, step: StepSpec[TrainOptions]) -> Work:
        max_length = step.options["trainer"]["max_length"]
        if "preferences" in step.locations:
            found = self._pairs(step, max_length)
            return replace(found, trained=round(found.tokens * _epochs(step, found.rows)))
        sources = [one for one in step.inputs["pairs"].inputs.values() if isinstance(one, StepSpec)]
        found = self._references(sources[0], "train", max_length=max_length, rendered_for=step)
        rows = found.rows * len(sources)
        trained = round(2 * found.tokens * len(sources) * _epochs(step, rows))
        return replace(found, rows=rows, trained=trained, assumes=True, at_most=True)

    def _answers(self, step: StepSpec[AnswerOptions]) -> Work:
        role = "test" if "test" in step.locations else "train"
        found = self._references(step, role, max_length=None)
        samples, room = step.options["samples"], step.options["max_new_tokens"]
        return replace(
            found,
            rows=found.rows * samples,
            read=found.prompts * samples,
            written=found.rows * samples * room,
            longest=found.longest_prompt + room,
            at_most=True,
        )

    def _judged(self, step: StepSpec) -> Work:
        """The questions put to a judge; each shows a prompt, its reference and an answer."""
        answers: StepSpec = step.inputs["answers"]
        found = self._references(answers, "test", max_length=None)
        shown, orders = template_tokens(step), orders_of(step)
        room = answers.options["max_new_tokens"] + shown
        return replace(
            found,
            rows=found.rows * orders,
            read=(found.tokens + found.rows * room) * orders,
            longest=found.longest + room,
            at_most=True,
        )

    def _contexts(self, step: StepSpec[ContextOptions]) -> Work:
        found = self._references(step, "train", max_length=step.options["max_length"])
        return replace(found, read=found.tokens, written=found.answers)

    def _gap_contexts(self, step: StepSpec[GapContextOptions]) -> Work:
        """Every row once at each rate but 0, where nothing is written."""
        found = self._references(step, "test", max_length=step.options["max_length"])
        times = len(step.options["rates"]) - 1
        counts = {"rows": found.rows, "read": found.tokens, "written": found.answers}
        return replace(found, **{name: count * times for name, count in counts.items()})

    def _gap_losses(self, step: StepSpec[ComputingOptions]) -> Work:
        contexts: StepSpec[GapContextOptions] = step.inputs["contexts"]
        found = self._references(contexts, "test", max_length=contexts.options["max_length"])
        times = len(contexts.options["rates"])
        return replace(found, rows=found.rows * times, read=found.tokens * times)

    def _recovery_beginnings(self, step: StepSpec[BeginningOptions]) -> Work:
        """Prompt and beginning at every cut and k but 0."""
        found = self._answers(step.inputs["answers"])
        ks, cuts = len(step.options["replaced"]), step.options["cuts"]
        begun = round(sum(cuts) * found.written)
        return replace(
            found,
            rows=found.rows * ks * len(cuts),
            read=(found.read * len(cuts) + begun) * ks,
            written=found.rows * sum(step.options["replaced"]) * len(cuts),
        )

    def _recovery_answers(self, step: StepSpec) -> Work:
        """Beginnings are read, and as much written as is left of an answer."""
        beginnings = step.inputs["beginnings"]
        found = self._answers(beginnings.inputs["answers"])
        ks, cuts = len(beginnings.options["replaced"]) + 1, beginnings.options["cuts"]
        begun = round(sum(cuts) * found.written)
        return replace(
            found,
            rows=found.rows * ks * len(cuts),
            read=(found.read * len(cuts) + begun) * ks,
            written=(found.written * len(cuts) - begun) * ks,
        )

    def _corrections(self, step: StepSpec[CorrectionOptions]) -> Work:
        options = step.options
        found = self._references(
            step, "train", max_length=options["max_length"], shown=options["shown_prompt"]
        )
        if options["correction"] == "token":
            return replace(found, read=found.tokens, written=found.answers, assumes=True)
        room = options["max_new_tokens"]
        return replace(
            found,
            read=found.prompts,
            written=found.rows * room,
            longest=found.longest_prompt + room,
            assumes=True,
            at_most=True,
        )

    def _references(
        self, step: StepSpec[RowOptions], role: str, *, max_length: int | None,
        shown: str | None = None, rendered_for: StepSpec[RowOptions] | None = None,
    ) -> Work:  # fmt: skip
        """Lengths of prompts and references of a source that a step reads."""
        source, task, shots = (
            step.locations[role],
            step.options["task"],
            step.locations.get("shots"),
        )
        renderer = self._renderer(rendered_for or step)
        turns = step.options.get("train_on", "last")
        key = repr((source, task, shots, turns, max_length, shown, _looks(renderer)))
        if key not in self._known:
            answered = role == "train" or max_length is not None
            examples = load_examples(
                source, task, _ignore, renderer, answered=answered, train_on=turns
            )
            if shots:
                solved = load_examples(shots, task)
                examples = [example.with_shots(solved) for example in examples]
            chosen, scale = _sample(examples, _text_length)
            rows, counts = tokenise(chosen, renderer, max_length=max_length)
            sizes = [(_prompt_length(row, renderer, shown), len(row.answer)) for row in rows]
            dropped = counts["dropped"] / len(chosen)
            self._known[key] = _sum_up(sizes, scale, round(len(examples) * (1 - dropped)))
        return self._known[key]

    def _pairs(self, step: StepSpec[TrainOptions], max_length: int | None) -> Work:
        """Lengths of both sides of the pairs of a source; the prompt counts twice."""
        source, task = step.locations["preferences"], step.options["task"]
        renderer = self._renderer(step)
        key = repr((source, task, max_length, _looks(renderer), "pairs"))
        if key not in self._known:
            pairs = load_preferences(source, task, _ignore, renderer)
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
            found = _sum_up(sizes, scale, round(len(pairs) * len(sizes) / len(chosen)))
            self._known[key] = replace(found, longest=longest)
        return self._known[key]


def trainer_options(step: StepSpec[TrainOptions]) -> TrainerOptions:
    """What the recipe says under `trainer:` for a training step."""
    return {**step.options["trainer"], **step.runtime_options["trainer"]}


def _epochs(step: StepSpec[TrainOptions], rows: int) -> float:
    """How often training reads every row."""
    trainer = trainer_options(step)
    steps = trainer.get("max_steps") or -1
    if steps > 0:
        return steps / max(math.ceil(rows / step.options["batch_size"]), 1)
    return float(trainer.get("num_train_epochs", _DEFAULT_EPOCHS))


def _looks(renderer: Renderer) -> tuple[Any, ...]:
    """What differs between the renderers of a plan's steps."""
    terms = renderer.template_date, renderer.template_options
    return renderer.system, renderer.max_prompt_length, renderer.plain, *terms


def _prompt_length(row: TokenRow, renderer: Renderer, shown: str | None) -> int:
    """Tokens of a row's prompt, or of the one that shows the reference."""
    if shown is None:
        return len(row.prompt)
    example = row.example
    whole = example.shown(shown, answer=example.reference, end=renderer.end_of_turn)
    return len(renderer.prompt_ids(whole))


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


def _sum_up(sizes: list[tuple[int, int]], scale: float, rows: int) -> Work:
    """Sum up (prompt, answer) sizes; the longest rows of a sample count for maxima only."""
    counted = sizes if scale == 1 else sizes[:-_LONGEST_ROWS]
    share = rows / max(len(counted), 1)
    return Work(
        rows=rows,
        prompts=round(share * sum(prompt for prompt, _ in counted)),
        answers=round(share * sum(answer for _, answer in counted)),
        longest=max((prompt + answer for prompt, answer in sizes), default=0),
        longest_prompt=max((prompt for prompt, _ in sizes), default=0),
        sampled=scale != 1,
    )
