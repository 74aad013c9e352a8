"""The step in which a model answers prompts, and the rows it stores.

With few-shot prompts (`few_shot`) a model often goes on to invent the next question: answers are
cut before it, as in lm-eval.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

from pipeline.data.load import count_parts, load_examples, prompts_cut, warn_of_repeats
from pipeline.data.render import Renderer, renderer_for
from pipeline.data.tasks import Example
from pipeline.decoding.generate import Prompt, SamplingParams, iter_answers
from pipeline.errors import InputError
from pipeline.models.load import load_to_read, weights_of
from pipeline.rows import diagnostics
from pipeline.rows.shards import length_buckets, write_in_shards
from pipeline.rows.stored import AnswerRow
from pipeline.steps import artifact
from pipeline.steps.context import StepContext
from pipeline.steps.options import AnswerOptions

NEXT_QUESTION = "Question:"
_ASKED_AT_ONCE = 1024


def write_answers(step: StepContext[AnswerOptions]) -> None:
    """Step: answer every prompt of a source, `samples` times each, and store the answers.

    Raises:
        InputError: if a test prompt leaves no room for an answer in the model's context window.
    """
    options = step.options
    renderer = renderer_for(step)
    examples, prompts = _read_prompts(step, renderer)
    how = SamplingParams(
        max_new_tokens=options["max_new_tokens"],
        stop_ids=renderer.stop_ids,
        temperature=options["temperature"],
        top_k=options["top_k"],
        top_p=options["top_p"],
        seed=step.seed_of_round(),
        stop_text=NEXT_QUESTION if "shots" in step.locations else None,
        tokenizer=renderer.tokenizer,
        excluded_ids=renderer.ids_without_token,
    )
    vllm = options.get("engine") == "vllm"
    with (_with_vllm if vllm else _in_this_process)(step, prompts, how) as write:

        def make(prompts: Sequence[Prompt]) -> Iterator[AnswerRow]:
            for prompt, ids in write(prompts):
                yield _answer_row(prompt, examples[prompt.row_id], ids, renderer)

        rows = write_in_shards(
            step,
            prompts,
            make,
            key=lambda prompt: (prompt.row_id, prompt.sample),
            size=lambda prompt: len(prompt.ids),
            row_key=lambda row: (row["id"], row["sample"]),
            tokens=lambda row: len(row["ids"]),
            file_name=artifact.SAMPLES,
            at_once=_ASKED_AT_ONCE if vllm else None,
        )
    step.metrics["answers"] = len(rows)
    step.metrics |= count_parts(examples[row_id] for row_id in {row["id"] for row in rows})
    step.metrics["tokens_generated"] = sum(len(row["ids"]) for row in rows)
    step.metrics["truncated"] = sum(not row["finished"] for row in rows)
    if "train" in step.locations:
        _check_own(step, rows)
    diagnostics.check_rate(step)


def _check_own(step: StepContext[AnswerOptions], rows: Sequence[AnswerRow]) -> None:
    """Check self-generated answers before they become training rows or pairs.

    Raises:
        InputError: if all of them are empty.
    """
    figures = answer_figures(rows)
    count, empty, cut = (figures[key] for key in ("answers", "answers empty", "answers cut"))
    if empty == count:
        raise InputError(
            f"all {count} own answers are empty: the model ends its turn at once, so there is "
            "nothing to learn from; start the stage (its `from`) from a model that answers, or "
            "train that model with a lower trainer.learning_rate"
        )
    diagnostics.warn_over(
        step,
        "answers_empty",
        empty / count,
        f"{empty} of {count} own answers are empty: the model ends its turn at once; train the "
        "stage it starts from longer, or with a lower trainer.learning_rate",
    )
    diagnostics.warn_over(
        step,
        "answers_cut",
        cut / count,
        f"{cut} of {count} own answers are cut at generation.max_new_tokens "
        f"{step.options['max_new_tokens']} and have no end of turn to learn from; raise it",
    )


_Write = Callable[[Sequence[Prompt]], Iterator[tuple[Prompt, list[int]]]]


@contextmanager
def _in_this_process(
    step: StepContext[AnswerOptions], prompts: Sequence[Prompt], how: SamplingParams
) -> Iterator[_Write]:
    """Give a function that answers prompts with the model, which is loaded when first asked."""
    del prompts
    model = cache(partial(load_to_read, step))

    def size(prompt: Prompt) -> int:
        return len(prompt.ids) + how.max_new_tokens

    def write(prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, list[int]]]:
        for group, at_once in length_buckets(prompts, size, step.runtime_options["batch_tokens"]):
            for place, ids in iter_answers(
                model(), group, how, engine=step.runtime_options["engine"], batch_size=at_once
            ):
                yield group[place], ids

    yield write


@contextmanager
def _with_vllm(
    step: StepContext[AnswerOptions], prompts: Sequence[Prompt], how: SamplingParams
) -> Iterator[_Write]:
    """Give a function that sends many prompts at once, which vLLM batches, and yields in between.

    vLLM starts with the first call.
    """
    from pipeline.decoding.vllm_engine import VllmEngine

    dtype = step.precision.weights
    longest = max((len(prompt.ids) for prompt in prompts), default=0) + how.max_new_tokens
    with VllmEngine(**weights_of(step), dtype=dtype, longest=longest) as engine:

        def write(prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, list[int]]]:
            for start in range(0, len(prompts), _ASKED_AT_ONCE):
                asked = prompts[start : start + _ASKED_AT_ONCE]
                answers = engine.answer(
                    asked,
                    max_new_tokens=how.max_new_tokens,
                    stop_ids=how.stop_ids,
                    temperature=how.temperature,
                    top_k=how.top_k,
                    top_p=how.top_p,
                    seed=how.seed,
                    stop_text=how.stop_text,
                    excluded_ids=how.excluded_ids,
                )
                step.metrics["vllm"] = engine.version  # maybe from another environment
                yield from zip(asked, answers, strict=True)

        yield write


def _read_prompts(
    step: StepContext[AnswerOptions], renderer: Renderer
) -> tuple[list[Example], list[Prompt]]:
    """Return all examples, cut to fit, and the prompts to answer."""
    options = step.options
    role = next(name for name in ("test", "train") if name in step.locations)
    source = step.source(role)
    answered = role == "train"  # the same filter as in the steps that use these answers
    task = options["task"]
    whole = load_examples(source, task, step.warn, renderer, answered=answered)
    if role == "test":
        warn_of_repeats(whole, source, step.warn)
    if "shots" in step.locations:
        assert "few_shot" in options  # `Builder.answers` plans both
        shots = load_examples(step.source("shots"), options["task"], step.warn)
        if len(shots) < options["few_shot"]:
            raise InputError(
                f"few_shot is {options['few_shot']}, but shots has only {len(shots)} rows"
            )
        whole = [example.with_shots(shots) for example in whole]
    examples = [renderer.fit(example) for example in whole]
    cut = sum(a is not b for a, b in zip(examples, whole, strict=True))
    if cut:
        step.warn(prompts_cut(cut, len(whole), options["max_prompt_length"]))
    ids = [renderer.prompt_ids(example) for example in examples]
    return examples, [
        Prompt(row_id, sample, ids[row_id])
        for row_id in _with_room(step, examples, ids, renderer)
        for sample in range(options["samples"])
    ]


def _with_room(
    step: StepContext[AnswerOptions],
    examples: list[Example],
    prompts: list[list[int]],
    renderer: Renderer,
) -> list[int]:
    """Return the rows with room for an answer; training rows may be skipped, test rows never."""
    limit = step.options["max_new_tokens"]
    room = sys.maxsize if renderer.window is None else renderer.window - limit
    fitting = [row for row, ids in enumerate(prompts) if len(ids) <= room and renderer.fits(ids)]
    if len(fitting) == len(prompts):
        return fitting
    first = next(row for row, kept in enumerate([*fitting, None]) if row != kept)
    place = examples[first].place
    sentence = (
        f"a prompt of {len(prompts[first])} tokens and max_new_tokens {limit} (under generation, "
        f"or the benchmark's own) exceed the model's window of {renderer.window} tokens"
    )
    if not renderer.fits(prompts[first]):
        longest = renderer.max_prompt_length
        sentence = f"a prompt of {len(prompts[first])} tokens is over max_prompt_length {longest}"
    if "test" in step.locations or not fitting:
        raise InputError(
            f"{place}: {sentence}; set max_prompt_length or max_new_tokens to fit, or "
            "shorten or remove the row"
        )
    left_out = len(prompts) - len(fitting)
    step.warn(f"{left_out} of {len(prompts)} rows get no answer, first {place}: {sentence}")
    return fitting


def answer_figures(rows: Iterable[AnswerRow]) -> dict[str, float]:
    """Figures of a round's self-generated answers, from the rows of `samples.jsonl`."""
    names = ("answers", "answers empty", "answers = reference", "answers cut")
    figures: dict[str, float] = dict.fromkeys(names, 0)
    for row in rows:
        figures["answers"] += 1
        figures["answers empty"] += row["finished"] and not row["answer"]
        figures["answers = reference"] += is_reference(row)
        figures["answers cut"] += not row["finished"]
    return figures


def is_reference(row: AnswerRow) -> bool:
    """Whether a self-generated answer equals the reference, and ends."""
    return row["finished"] and row["answer"] == row["reference"].strip()


def _answer_row(prompt: Prompt, example: Example, ids: list[int], renderer: Renderer) -> AnswerRow:
    answer, next_question = renderer.answer_text(ids), ""
    if example.shots:
        answer, next_question, _ = answer.partition(NEXT_QUESTION)
    row: AnswerRow = {
        "id": prompt.row_id,
        "sample": prompt.sample,
        "messages": example.messages,
        "reference": example.reference,
        "answer": answer.strip(),
        "ids": ids,
        "finished": bool(next_question) or (bool(ids) and ids[-1] in renderer.stop_ids),
    }
    if example.tools:
        row["tools"] = example.tools
    if example.shots:
        row["few_shot"] = example.shots
    return row
