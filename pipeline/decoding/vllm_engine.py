"""Free answers from vLLM, in a separate process.

vLLM does not release GPU memory within a process, so training never shares one with it: the worker
process runs `pipeline/decoding/vllm_worker.py` and ends with the engine. It runs under this Python,
or the one set in BASHRAC_VLLM_PYTHON, since vLLM pins versions of transformers that may not work
for training.

Decisions:
1. Every answer has its own seed, derived from (seed, row id, sample), so its random numbers do not
   depend on the batch. Logits still round differently in another batch, as always in 16 bits;
   VLLM_BATCH_INVARIANT=1 avoids that too, on GPUs that support it.
2. The model's own generation config and end tokens are ignored.
3. vLLM runs within the worker process (VLLM_ENABLE_V1_MULTIPROCESSING=0): scheduling is then
   reproducible, errors show their cause, and no process outlives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.decoding.vllm_process import Worker
from pipeline.errors import InputError
from pipeline.models.load import UNTRUSTED
from pipeline.models.locate import base_of, locate
from pipeline.models.trust import Trust, check_pickles
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.decoding.generate import Prompt
    from pipeline.decoding.vllm_worker import Answers, Request, Settings

# The ranks that vLLM supports; an adapter gets the next larger one.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_UNSUPPORTED = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")


def seeds_of(prompts: Sequence[Prompt], seed: int) -> list[int]:
    """Return a seed per answer, 0 to 2^63 - 1, which depends only on (seed, row id, sample)."""
    import torch

    from pipeline.decoding import noise

    rows = torch.tensor([prompt.row_id for prompt in prompts])
    samples = torch.tensor([prompt.sample for prompt in prompts])
    keys = noise.keys(seed, rows, samples, stream=noise.SAMPLE)
    return (keys & ((1 << 63) - 1)).tolist()


class VllmEngine:
    """Answers prompts with one model.

    Use it as a context manager. The process starts with the first call of `answer`.

    Args:
        base: hub id, folder, embedded name, or the folder of a step; may be an adapter.
        adapter: the folder of a step that trained an adapter.
        revision: hub revision of the base.
        trust: whether its files may run code or unpickle weights.
        dtype: 'float32', 'bfloat16' or 'float16'.
        longest: most tokens of a prompt and its answer together, to save memory; None for the
            model's context window.
        log: file to which vLLM's own messages are appended; None for a temporary file, which is
            kept only after a failure.

    Attributes:
        version: vLLM's version, known after the first answers.

    Raises:
        InputError: for an adapter that vLLM does not support, or weights that are not trusted.
    """

    def __init__(
        self,
        base: str,
        *,
        adapter: str | None = None,
        revision: str | None = None,
        trust: Trust = UNTRUSTED,
        dtype: str = "bfloat16",
        longest: int | None = None,
        log: Path | None = None,
    ):
        whole, place = base_of(base), locate(base)
        if whole != place:
            if adapter is not None:
                raise InputError(
                    f"{base} is an adapter, and vLLM takes only one; merge it into its base first"
                )
            adapter = base
        lora = None if adapter is None else Path(locate(adapter)).resolve()
        for folder in (whole, *([] if lora is None else [str(lora)])):
            check_pickles(folder, trust)
        self._settings: Settings = {
            "llm": {
                "model": whole,
                "revision": revision,
                "tokenizer": place,
                "tokenizer_revision": revision if place == whole else None,
                "dtype": dtype,
                "max_model_len": longest,
                "seed": 0,
                "trust_remote_code": trust.code,
                "load_format": "auto" if trust.pickles else "safetensors",
            },
            "adapter": lora and str(lora),
            "rank": lora and _rank_for(lora),
        }
        self._worker = Worker(log)
        self._window = 0
        self.version: str | None = None

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(at_once=kind is not None)

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_text: str | None = None,
        excluded_ids: Sequence[int] = (),
    ) -> list[list[int]]:
        """Answer prompts; larger calls are faster.

        Args:
            prompts: the prompts to answer.
            max_new_tokens: most tokens per answer.
            stop_ids: tokens that end an answer.
            temperature: 0 for greedy decoding, else the sampling temperature.
            top_k: sample from the k likeliest tokens; 0 for all.
            top_p: sample from the nucleus of this mass; 1 for all.
            seed: together with row id and sample determines the answer.
            stop_text: a text that also ends an answer, and is part of it.
            excluded_ids: tokens that are never sampled.

        Returns:
            Per prompt the new token ids, including the stop token if the answer ended with one.

        Raises:
            InputError: if vLLM is not installed.
            StepFailedError: if its process ends before it has answered.
            ValueError: if a prompt and its answer exceed the context window.
        """
        if not prompts:
            return []
        if not self._worker.runs:
            ready = self._worker.start(self._settings)
            self._window, self.version = ready["window"], ready["version"]
        longest = max(len(prompt.ids) for prompt in prompts) + max_new_tokens
        if longest > self._window:  # vLLM would silently cut the answer
            raise ValueError(
                f"prompt and answer take {longest} tokens, more than the window of {self._window}"
            )
        numbers = seeds_of(prompts, seed)
        request: Request = {
            "prompts": [
                {"ids": list(prompt.ids), "seed": number}
                for prompt, number in zip(prompts, numbers, strict=True)
            ],
            "sampling": {
                "temperature": temperature,
                "top_k": top_k or -1,  # 0 does not mean all in every version
                "top_p": top_p,
                "max_tokens": max_new_tokens,
                "stop_token_ids": list(stop_ids),
                "stop": [stop_text] if stop_text else None,
            },
            "excluded": list(excluded_ids),
        }
        replied: Answers = self._worker.ask(request, "while it answered")
        return replied["answers"]

    def close(self, *, at_once: bool = False) -> None:
        """End the process, giving it time unless `at_once`; the next `answer` starts another."""
        self._worker.close(at_once=at_once)


def _rank_for(adapter: Path) -> int:
    """The `max_lora_rank` that vLLM needs for an adapter."""
    config = artifact.read_json(adapter / "adapter_config.json")
    unknown = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        unknown.append("bias")
    if unknown:
        raise InputError(
            f"engine: vllm does not support adapters with {' and '.join(unknown)}, such as "
            f"{adapter}; use engine: auto, or train without"
        )
    rank = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    if rank > _RANKS[-1]:
        raise InputError(
            f"engine: vllm supports adapters up to rank {_RANKS[-1]}, and {adapter} has {rank}; "
            "use engine: auto, or a smaller r under lora"
        )
    return next(allowed for allowed in _RANKS if allowed >= rank)
