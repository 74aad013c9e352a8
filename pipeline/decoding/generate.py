"""Free answers: the model continues its own tokens.

Sampling uses keyed Gumbel noise, so an answer depends on (seed, row, sample, position) and not on
the rows that share its batch.

The engine `auto` decodes with continuous batching (pipeline/decoding/jacobi.py), and falls back to
`transformers`, its `generate` on batch after batch, for models that do not work with the
slot-indexed KV cache. Both give the same answers in float32. Models with wrong logits under left
padding are run with batch size 1, and those with wrong logits under a cache without one
(pipeline/decoding/probe.py). Rows long enough for LongRoPE or dynamic NTK to depend on the longest
row of a batch are run alone. vLLM (pipeline/decoding/vllm_engine.py) has its own random numbers,
and so its samples differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.decoding import noise
from pipeline.decoding.batching import (
    forget_length,
    in_order,
    pad_left,
    rope_limit,
    without_adapter,
)
from pipeline.decoding.probe import can_read, steps_of
from pipeline.decoding.sampling import Sampling, greedy, without

ENGINES = ("auto", "transformers")


@dataclass(frozen=True)
class Prompt:
    """A prompt for one answer.

    Attributes:
        row_id: the row's position in its source.
        sample: which of the row's samples this is, from 0.
        ids: prompt token ids.
        limit: the most tokens of its answer, if not those of all (`SamplingParams`).
    """

    row_id: int
    sample: int
    ids: list[int]
    limit: int | None = None

    @property
    def noise_id(self) -> int:
        """The row id for its noise: samples of one prompt must not share noise."""
        return self.row_id * 1_000_003 + self.sample


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled, and where they end.

    Attributes:
        max_new_tokens: most tokens per answer.
        stop_ids: tokens that end an answer.
        temperature: 0 for greedy decoding, else the sampling temperature.
        top_k: sample from the k likeliest tokens; 0 for all.
        top_p: sample from the nucleus of this mass; 1 for all.
        seed: together with row id, sample and position determines the sampled token.
        stop_text: a text that also ends an answer (and is part of it); needs the tokenizer.
        tokenizer: the model's tokenizer.
        excluded_ids: tokens that are never sampled.
    """

    max_new_tokens: int
    stop_ids: Sequence[int]
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_text: str | None = None
    tokenizer: Any = None
    excluded_ids: tuple[int, ...] = ()

    @property
    def sampling(self) -> Sampling | None:
        """The sampler, or None for greedy decoding."""
        if self.temperature == 0:
            return None
        return Sampling(self.seed, self.temperature, self.top_k, self.top_p, self.excluded_ids)


def generate_answers(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    engine: str = "auto",
    batch_size: int = 32,
    **how: Any,
) -> list[list[int]]:
    """Answer prompts.

    Args:
        model: a causal language model (or PeftModel) of transformers. Its own generation config is
            ignored.
        prompts: the prompts to answer.
        engine: 'auto' or 'transformers'; see the module docstring.
        batch_size: most answers decoded at once; in float32 it does not change them.
        how: the fields of `SamplingParams`.

    Returns:
        Per prompt the new token ids, including the stop token if the answer ended with one.

    Raises:
        ValueError: for an unknown engine.
    """
    done = iter_answers(model, prompts, SamplingParams(**how), engine=engine, batch_size=batch_size)
    return in_order(done, len(prompts))


@torch.no_grad()
def iter_answers(
    model: Any,
    prompts: Sequence[Prompt],
    how: SamplingParams,
    *,
    engine: str = "auto",
    batch_size: int = 32,
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index in prompts, answer) as answers finish (unordered); see `generate_answers`."""
    if engine not in ENGINES:
        raise ValueError(f"no engine {engine!r}; engines: {', '.join(ENGINES)}")
    order = sorted(range(len(prompts)), key=lambda place: -_most_tokens(prompts[place], how))
    if not order:
        return
    with _plain_generation(model):
        limit = rope_limit(model)
        long = [place for place in order if _most_tokens(prompts[place], how) > limit]
        for place in long:
            yield place, _generate(model, [prompts[place]], how, _room(prompts[place], how))[0]
            forget_length(model)
        order = order[len(long) :]  # sorted by length, so these were the first
        write = _by_transformers
        if engine == "auto" and order and can_read(model, _most_tokens(prompts[order[0]], how)):
            write = _by_jacobi
        for place, ids in write(model, [prompts[place] for place in order], how, batch_size):
            yield order[place], ids


def _room(prompt: Prompt, how: SamplingParams) -> int:
    """The most tokens of a prompt's answer."""
    return how.max_new_tokens if prompt.limit is None else prompt.limit


def _most_tokens(prompt: Prompt, how: SamplingParams) -> int:
    """The most tokens that a prompt and its answer can have together."""
    return len(prompt.ids) + _room(prompt, how)


def _by_jacobi(
    model: Any, prompts: Sequence[Prompt], how: SamplingParams, batch_size: int
) -> Iterator[tuple[int, list[int]]]:
    from pipeline.decoding.jacobi import decode, free_row

    rows = [free_row(prompt.ids, prompt.noise_id, _room(prompt, how)) for prompt in prompts]
    excluded = torch.tensor(how.excluded_ids, dtype=torch.long, device=model.device)
    return decode(
        model,
        rows,
        seed=how.seed,
        score=how.sampling.noisy if how.sampling else lambda logits, _: without(logits, excluded),
        batch_size=batch_size,
        stop=_stop(how),
    )


def _stop(how: SamplingParams) -> Any:
    """Return a function from the last tokens of answers, [B, K], to which of them end: bool [B]."""
    from transformers import StopStringCriteria

    stop_ids = torch.tensor(list(how.stop_ids))
    has_text = how.stop_text and StopStringCriteria(how.tokenizer, [how.stop_text])

    def stop(tail_BK: torch.Tensor) -> torch.Tensor:
        ends_B = torch.isin(tail_BK[:, -1], stop_ids)
        return ends_B | has_text(tail_BK, None) if has_text else ends_B  # type: ignore[arg-type]

    return stop


def _by_transformers(
    model: Any, prompts: Sequence[Prompt], how: SamplingParams, batch_size: int
) -> Iterator[tuple[int, list[int]]]:
    if prompts and not steps_of(model).together:
        batch_size = 1
    for room in dict.fromkeys(_room(prompt, how) for prompt in prompts):
        places = [place for place, prompt in enumerate(prompts) if _room(prompt, how) == room]
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            answers = _generate(model, [prompts[place] for place in batch], how, room)
            yield from zip(batch, answers, strict=True)


def _generate(
    model: Any, prompts: Sequence[Prompt], how: SamplingParams, room: int
) -> list[list[int]]:
    """Answer one batch with transformers' `generate`, by at most `room` tokens each."""
    from transformers import GenerationConfig, LogitsProcessorList

    input_ids, mask = pad_left([prompt.ids for prompt in prompts], model.device)
    # `generate` itself would take the argmax of NaN without a word.
    processors: Any = LogitsProcessorList([_check_scores])
    if how.excluded_ids:  # on a copy, since `without` writes in place
        excluded = torch.tensor(how.excluded_ids, device=model.device)
        processors.append(lambda _, scores: without(scores.clone(), excluded))
    if how.sampling:
        processors.append(_KeyedSampling(prompts, how.sampling, start=input_ids.shape[1]))
    output = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        logits_processor=processors,
        generation_config=GenerationConfig(
            max_new_tokens=room,
            do_sample=False,  # _KeyedSampling adds the noise that makes greedy search sample
            eos_token_id=list(how.stop_ids),
            pad_token_id=how.stop_ids[0],  # after an answer, where `_until_stop` cuts
            stop_strings=how.stop_text,
            use_cache=steps_of(model).cached,
        ),
        tokenizer=how.tokenizer,
    )
    stops = set(how.stop_ids)
    return [_until_stop(row, stops) for row in output[:, input_ids.shape[1] :].tolist()]


def _check_scores(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A logits processor that raises for NaN or infinite scores and changes nothing."""
    del input_ids
    greedy(scores)
    return scores


class _KeyedSampling:
    """A logits processor that turns greedy search into sampling with keyed noise."""

    def __init__(self, prompts: Sequence[Prompt], sampling: Sampling, *, start: int):
        self.rows = torch.tensor([prompt.noise_id for prompt in prompts])
        self.sampling, self.start = sampling, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = torch.tensor(input_ids.shape[1] - self.start, device=scores.device)
        rows = self.rows.to(scores.device)
        return self.sampling.noisy(
            scores, noise.keys(self.sampling.seed, rows, position, stream=noise.SAMPLE)
        )


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode, with an empty generation config.

    transformers fills in whatever a call leaves open from the model's own generation config, so a
    repetition penalty there would silently change answers.
    """
    from transformers import GenerationConfig

    inner = without_adapter(model)
    before = [(module, module.training, module.generation_config) for module in {model, inner}]
    model.eval()
    for module, _, _ in before:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, training, config in before:
            module.train(training)
            module.generation_config = config


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    for position, token_id in enumerate(ids):
        if token_id in stops:
            return ids[: position + 1]
    return ids
