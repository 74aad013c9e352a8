"""Free answers: the model continues its own tokens, through transformers' `generate`.

Sampling adds keyed Gumbel noise to the scores and takes the largest, so an answer depends on
(seed, row, sample, position) and not on the rows it shares a batch with.

After solved examples (`few_shot`) a model writes on with a next question: answers end before it, as
in lm-eval.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import artifact, noise
from pipeline.contexts import Sampling, pad_left, without_adapter
from pipeline.data import load_examples, prompts_cut
from pipeline.errors import InputError
from pipeline.model import load_to_read
from pipeline.render import Renderer, renderer_for
from pipeline.shards import write_in_shards
from pipeline.step import StepRun
from pipeline.tasks import Example

NEXT_QUESTION = "Question:"


@dataclass(frozen=True)
class Prompt:
    """One answer to write.

    Attributes:
        row_id: the row's position in its source.
        sample: which of the row's samples, from 0.
        ids: prompt token ids.
    """

    row_id: int
    sample: int
    ids: list[int]


class _KeyedSampling:
    """A logits processor that turns greedy search into sampling with keyed noise."""

    def __init__(self, prompts: Sequence[Prompt], sampling: Sampling, *, start: int):
        # A sample is a row of its own: samples of one prompt must not share noise.
        ids = [prompt.row_id * 1_000_003 + prompt.sample for prompt in prompts]
        self.rows = torch.tensor(ids)
        self.sampling, self.start = sampling, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = torch.tensor(input_ids.shape[1] - self.start, device=scores.device)
        rows = self.rows.to(scores.device)
        return self.sampling.noisy(
            scores, noise.keys(self.sampling.seed, rows, position, stream=noise.SAMPLE)
        )


@torch.no_grad()
def generate_answers(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_text: str | None = None,
    tokenizer: Any = None,
) -> list[list[int]]:
    """Answer one batch of prompts.

    Args:
        model: a causal language model (or PeftModel) of transformers.
        prompts: the batch.
        max_new_tokens: limit of tokens per answer.
        stop_ids: tokens that end an answer.
        temperature: 0 for greedy, else sampling at that temperature.
        top_k: sample from the k likeliest tokens; 0 for all.
        top_p: sample from the nucleus of this mass; 1 for all.
        seed: with row id, sample and position decides what is sampled.
        stop_text: a text that ends an answer too (and is part of it); needs the tokenizer.
        tokenizer: the model's.

    The model's own generation config is left out of account.

    Returns:
        Per prompt the new token ids, with the stop token last when the answer was ended by one.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    input_ids, mask = pad_left([prompt.ids for prompt in prompts], model.device)
    processors = LogitsProcessorList()
    if temperature > 0:
        sampling = Sampling(seed, temperature, top_k, top_p)
        keyed = _KeyedSampling(prompts, sampling, start=input_ids.shape[1])
        processors.append(keyed)  # type: ignore[arg-type]
    with _plain_generation(model):
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            logits_processor=processors,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop_ids),
                pad_token_id=stop_ids[0],
                stop_strings=stop_text,
            ),
            tokenizer=tokenizer,
        )
    stops = set(stop_ids)
    return [_until_stop(row, stops) for row in output[:, input_ids.shape[1] :].tolist()]


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Evaluation mode and an empty generation config, for as long as it lasts.

    transformers fills what a call leaves open from the model's own config: a repetition penalty
    there would change answers without a word.
    """
    from transformers import GenerationConfig

    inner = without_adapter(model)
    before = [(one, one.training, one.generation_config) for one in {model, inner}]
    model.eval()
    for one, _, _ in before:
        one.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for one, training, config in before:
            one.train(training)
            one.generation_config = config


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    for position, token_id in enumerate(ids):
        if token_id in stops:
            return ids[: position + 1]
    return ids


def write_answers(step: StepRun) -> None:
    """Step: answer every prompt of a source, `samples` times each, and store the answers.

    Raises:
        InputError: when a test prompt leaves no room for an answer in the model's context window.
    """
    options = step.options
    role = next(name for name in ("test", "train") if name in step.inputs)
    renderer = renderer_for(step)
    whole = load_examples(step.source(role), options["task"])
    if "shots" in step.inputs:
        shots = load_examples(step.source("shots"), options["task"])
        if len(shots) < options["few_shot"]:
            raise InputError(f"few_shot is {options['few_shot']} and shots has {len(shots)} rows")
        whole = [example.with_shots(shots) for example in whole]
    examples = [renderer.fit(example) for example in whole]
    cut = sum(a is not b for a, b in zip(examples, whole, strict=True))
    if cut:
        step.warn(prompts_cut(cut, len(whole), options["max_prompt_length"]))
    stop_ids = renderer.stop_ids
    ids = [renderer.prompt_ids(example) for example in examples]
    fitting = _with_room(step, ids, renderer)
    prompts = [
        Prompt(row_id, sample, ids[row_id])
        for row_id in fitting
        for sample in range(options["samples"])
    ]
    model = load_to_read(step)

    def make(batch: Sequence[Prompt]) -> list[dict[str, Any]]:
        answers = generate_answers(
            model,
            batch,
            max_new_tokens=options["max_new_tokens"],
            stop_ids=stop_ids,
            temperature=options["temperature"],
            top_k=options["top_k"],
            top_p=options["top_p"],
            seed=step.seed_of_round(),
            stop_text=NEXT_QUESTION if "shots" in step.inputs else None,
            tokenizer=renderer.tokenizer,
        )
        return [
            _answer_row(prompt, examples[prompt.row_id], ids, renderer, stop_ids)
            for prompt, ids in zip(batch, answers, strict=True)
        ]

    rows = write_in_shards(
        step,
        sorted(prompts, key=lambda prompt: (-len(prompt.ids), prompt.row_id, prompt.sample)),
        make,
        key=lambda prompt: (prompt.row_id, prompt.sample),
        row_key=lambda row: (row["id"], row["sample"]),
        batch_size=step.neutral["batch_size"],
        file_name=artifact.SAMPLES,
    )
    step.metrics["answers"] = len(rows)
    step.metrics["tokens_generated"] = sum(len(row["ids"]) for row in rows)
    truncated = step.metrics["truncated"] = sum(not row["finished"] for row in rows)
    if role == "train" and truncated > len(rows) / 2:
        step.warn(
            f"{truncated} of {len(rows)} own answers are cut at generation.max_new_tokens "
            f"{options['max_new_tokens']} and hold no end of turn to learn from; raise it"
        )


def _with_room(step: StepRun, prompts: list[list[int]], renderer: Renderer) -> list[int]:
    """Return the rows that can be answered: of training rows some, of test rows all or none."""
    limit = step.options["max_new_tokens"]
    room = sys.maxsize if renderer.window is None else renderer.window - limit
    fitting = [row for row, ids in enumerate(prompts) if len(ids) <= room and renderer.fits(ids)]
    if len(fitting) == len(prompts):
        return fitting
    first = next(row for row, kept in enumerate([*fitting, None]) if row != kept)
    sentence = (
        f"a prompt of {len(prompts[first])} tokens and max_new_tokens {limit} (under generation, "
        f"or the benchmark's own) exceed the model's window of {renderer.window} tokens"
    )
    if not renderer.fits(prompts[first]):
        longest = renderer.max_prompt_length
        sentence = f"a prompt of {len(prompts[first])} tokens is over max_prompt_length {longest}"
    if "test" in step.inputs or not fitting:
        raise InputError(
            f"row {first + 1}: {sentence}; set max_prompt_length or max_new_tokens to fit, or "
            "shorten or remove the row"
        )
    left_out = len(prompts) - len(fitting)
    step.warn(f"{left_out} of {len(prompts)} rows get no answer, first row {first + 1}: {sentence}")
    return fitting


def answer_figures(rows: list[dict[str, Any]]) -> dict[str, int]:
    """What a round's own answers look like, from the rows of `samples.jsonl`."""
    return {
        "answers": len(rows),
        "answers empty": sum(row["finished"] and len(row["ids"]) == 1 for row in rows),
        "answers = reference": sum(is_reference(row) for row in rows),
        "answers cut": sum(not row["finished"] for row in rows),
    }


def is_reference(row: dict[str, Any]) -> bool:
    """Whether an own answer says what the reference says, and ends."""
    return row["finished"] and row["answer"] == row["reference"]


def _answer_row(
    prompt: Prompt, example: Example, ids: list[int], renderer: Renderer, stop_ids: list[int]
) -> dict[str, Any]:
    answer, next_question = renderer.answer_text(ids), ""
    if example.shots:
        answer, next_question, _ = answer.partition(NEXT_QUESTION)
    return {
        "id": prompt.row_id,
        "sample": prompt.sample,
        "messages": example.messages,
        "reference": example.reference,
        **({"few_shot": example.shots} if example.shots else {}),
        "answer": answer.strip(),
        "ids": ids,
        "finished": bool(next_question) or (bool(ids) and ids[-1] in stop_ids),
    }
