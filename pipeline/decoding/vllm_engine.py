"""Free answers through vLLM, in a process of its own.

vLLM does not give GPU memory back inside a process, so training never shares one with it: the
process runs `pipeline/decoding/vllm_worker.py` and ends with the engine. Its Python is ours, or the
one that BASHRAC_VLLM_PYTHON names, since vLLM pins versions of transformers that training may not
take.

Decisions:
1. Every answer has a seed of its own, made of (seed, row id, sample), so what is drawn does not
   depend on company. Scores still round otherwise in another batch, as they do in 16 bits anywhere;
   with VLLM_BATCH_INVARIANT=1 vLLM avoids that too, on GPUs that can.
2. The model's own generation config and end tokens are left out of account.
3. vLLM runs inside that one process (VLLM_ENABLE_V1_MULTIPROCESSING=0): its scheduling is then
   reproducible, its errors name their cause, and nothing is left when it ends.
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

# Ranks that vLLM has room for; an adapter takes the next larger one.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_NOT_READ = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")


def seeds_of(prompts: Sequence[Prompt], seed: int) -> list[int]:
    """Return a seed per answer, 0 to 2^63 - 1, from (seed, row id, sample) alone."""
    import torch

    from pipeline.decoding import noise

    rows = torch.tensor([prompt.row_id for prompt in prompts])
    samples = torch.tensor([prompt.sample for prompt in prompts])
    keys = noise.keys(seed, rows, samples, stream=noise.SAMPLE)
    return (keys & ((1 << 63) - 1)).tolist()


class VllmEngine:
    """Answers prompts with one model, from the first question until it is closed.

    Use it as a context manager. The process starts with the first question.

    Args:
        base: hub id, folder, embedded name, or the folder of a step; perhaps of an adapter.
        adapter: the folder of a step that trained an adapter.
        revision: hub revision of the base.
        trust: what its files may do.
        dtype: 'float32', 'bfloat16' or 'float16'.
        longest: most tokens of a prompt and its answer together, which spares memory; None for
            what the model can read.
        log: where vLLM's own messages go (they are added); None for a temporary file that is kept
            only after a failure.

    Attributes:
        version: vLLM's, known from the first answer on.

    Raises:
        InputError: for an adapter that vLLM does not read, or weights that are not trusted.
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
                raise InputError(f"{base} is an adapter, and takes no other on top of it here")
            adapter = base
        lora = None if adapter is None else Path(locate(adapter)).resolve()
        for folder in (whole, *([] if lora is None else [str(lora)])):
            check_pickles(folder, trust)
        self._settings = {
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
        """Answer prompts; the more at a time, the faster.

        Args:
            prompts: what to answer.
            max_new_tokens: limit of tokens per answer.
            stop_ids: tokens that end an answer.
            temperature: 0 for greedy, else sampling at that temperature.
            top_k: sample from the k likeliest tokens; 0 for all.
            top_p: sample from the nucleus of this mass; 1 for all.
            seed: with row id and sample decides what is drawn.
            stop_text: a text that ends an answer too, and is part of it.
            excluded_ids: tokens that are never written.

        Returns:
            Per prompt the new token ids, with the stop token last when the answer was ended by one.

        Raises:
            InputError: when vLLM is not there.
            StepFailedError: when its process ends before it has answered.
            ValueError: when a prompt and its answer are longer than the model may read.
        """
        if not prompts:
            return []
        if not self._worker.runs:
            ready = self._worker.start(self._settings)
            self._window, self.version = ready["window"], ready["version"]
        longest = max(len(prompt.ids) for prompt in prompts) + max_new_tokens
        if longest > self._window:  # vLLM would cut the answer without a word
            raise ValueError(f"prompt and answer take {longest} tokens, over {self._window}")
        numbers = seeds_of(prompts, seed)
        request = {
            "prompts": [
                {"ids": list(prompt.ids), "seed": number}
                for prompt, number in zip(prompts, numbers, strict=True)
            ],
            "sampling": {
                "temperature": temperature,
                "top_k": top_k or -1,  # 0 is not 'all' to every version
                "top_p": top_p,
                "max_tokens": max_new_tokens,
                "stop_token_ids": list(stop_ids),
                "stop": [stop_text] if stop_text else None,
            },
            "excluded": list(excluded_ids),
        }
        return self._worker.ask(request, "while it answered")["answers"]

    def close(self, *, at_once: bool = False) -> None:
        """End the process, politely unless `at_once`; a closed engine starts anew when asked."""
        self._worker.close(at_once=at_once)


def _rank_for(adapter: Path) -> int:
    """The rank to give vLLM for an adapter."""
    config = artifact.read_json(adapter / "adapter_config.json")
    unknown = [name for name in _NOT_READ if config.get(name)]
    if config.get("bias", "none") != "none":
        unknown.append("bias")
    if unknown:
        raise InputError(
            f"engine: vllm does not read adapters with {' and '.join(unknown)}, as {adapter} is; "
            "use engine: auto, or train without"
        )
    rank = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    if rank > _RANKS[-1]:
        raise InputError(
            f"engine: vllm takes adapters of rank {_RANKS[-1]} at most, and {adapter} has {rank}; "
            "use engine: auto, or a smaller r under lora"
        )
    return next(allowed for allowed in _RANKS if allowed >= rank)
