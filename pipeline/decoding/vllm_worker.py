"""The vLLM worker: reads prompts as JSON lines and writes answers as JSON lines.

`pipeline/decoding/vllm_process.py` starts it as a script. It imports nothing from bashrac, since it
may run in another Python environment.

    in:   Settings, then Request, repeated
    out:  Ready, then Answers, one per Request; or Failure, as the last
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import Any, TextIO, TypedDict

# Time for a clean exit once standard input is closed.
_PATIENCE_S = 5.0
_MOST_OF_GPU = 0.9
_SPARED = 0.03


class Settings(TypedDict):
    """The model to load: arguments of `vllm.LLM`, an adapter's folder, and the rank it needs."""

    llm: dict[str, Any]
    adapter: str | None
    rank: int | None


class SeededPrompt(TypedDict):
    """Token ids to go on from."""

    ids: list[int]
    seed: int


class Sampling(TypedDict):
    """Arguments of `vllm.SamplingParams` that all prompts share."""

    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    stop_token_ids: list[int]
    stop: list[str] | None


class Request(TypedDict):
    """Prompts to answer; `excluded` tokens are never sampled."""

    prompts: list[SeededPrompt]
    sampling: Sampling
    excluded: list[int]


class Ready(TypedDict):
    """The model is loaded: its window in tokens, and vLLM's version."""

    window: int
    version: str


class Answers(TypedDict):
    """The new token ids of every prompt, in their order."""

    answers: list[list[int]]


class Failure(TypedDict):
    """Why the worker ends."""

    error: str


def main() -> None:
    """Answer until standard input closes."""
    # vLLM and its dependencies print to standard output, so replies get a separate descriptor.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines = _lines(sys.stdin)
    first = lines.get()
    if first is None:
        return
    try:
        _serve(json.loads(first), lines, replies)
    except Exception as error:
        _say(replies, {"error": f"{type(error).__name__}: {error}"})
        raise


def _lines(source: TextIO) -> queue.Queue[str | None]:
    """Read lines in a thread, None at end of file; then force an exit if work still goes on."""
    found: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in source:
            found.put(line)
        found.put(None)
        time.sleep(_PATIENCE_S)
        os._exit(1)  # the parent is gone, perhaps killed, while an answer was being generated

    threading.Thread(target=read, daemon=True).start()
    return found


def _say(replies: TextIO, message: Ready | Answers | Failure) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _serve(settings: Settings, lines: queue.Queue[str | None], replies: TextIO) -> None:
    from vllm import LLM, __version__  # type: ignore[import-not-found]
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

    adapter, adapters = None, {}
    if settings["adapter"] is not None:
        adapter = LoRARequest("adapter", 1, settings["adapter"])
        adapters = {"enable_lora": True, "max_lora_rank": settings["rank"], "max_loras": 1}
    llm = LLM(**settings["llm"], generation_config="vllm", **adapters, **_for_device())
    window = llm.llm_engine.model_config.max_model_len
    _say(replies, {"window": window, "version": __version__})
    while (line := lines.get()) is not None:
        _say(replies, {"answers": _answers(llm, adapter, json.loads(line))})


def _for_device() -> dict[str, Any]:
    """Options that depend on the device.

    vLLM claims a share of a GPU's total memory and refuses to start if less is free, so the share
    is computed from what is free. On a CPU compiling takes longer than it saves.
    """
    import torch  # a dependency of vLLM

    if not torch.cuda.is_available():
        return {"enforce_eager": True}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": min(_MOST_OF_GPU, free / total - _SPARED)}


def _answers(llm: Any, adapter: Any, request: Request) -> list[list[int]]:
    from vllm import SamplingParams  # type: ignore[import-not-found]

    shared = request["sampling"]
    # The strongest bias that is allowed: it divides a token's odds by 10^43.
    bias = dict.fromkeys(request["excluded"], -100.0) or None
    sampling = [
        # The request decides what ends an answer, not the model's tokenizer.
        SamplingParams(
            seed=prompt["seed"],
            ignore_eos=True,
            detokenize=shared["stop"] is not None,
            logit_bias=bias,
            **shared,
        )
        for prompt in request["prompts"]
    ]
    outputs = llm.generate(
        [{"prompt_token_ids": prompt["ids"]} for prompt in request["prompts"]],
        sampling,
        lora_request=adapter,
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    main()
