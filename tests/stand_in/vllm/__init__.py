"""The part of vLLM's interface that pipeline/decoding/vllm_worker.py uses, over transformers, for tests.

Where vLLM is strict or has habits so is this: it prints, it ends answers at the model's own end
tokens, it cuts them at max_model_len, it has room for adapters of certain ranks only.

STAND_IN_DOES: die, raise, sleep or echo instead of answering with the model.
STAND_IN_NOTES: a file for what it was given.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

print("INFO vllm prints to standard output")
__version__ = "0.32.0"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int = 16
    detokenize: bool = True
    logit_bias: dict[int, float] | None = None

    def __post_init__(self):
        if self.stop and not self.detokenize:
            raise ValueError("stop strings need detokenize")


class LLM:
    def __init__(
        self,
        model,
        *,
        tokenizer=None,
        revision=None,
        tokenizer_revision=None,
        dtype="auto",
        max_model_len=None,
        seed=0,
        trust_remote_code=False,
        load_format="auto",
        generation_config="auto",
        enable_lora=False,
        max_lora_rank=16,
        max_loras=1,
        enforce_eager=False,
        gpu_memory_utilization=0.92,
    ):
        self.given = {key: value for key, value in locals().items() if key != "self"}
        window = json.loads(Path(model, "config.json").read_text())["max_position_embeddings"]
        if max_model_len is not None and max_model_len > window:
            raise ValueError(f"max_model_len ({max_model_len}) is greater than {window}")
        if max_lora_rank not in RANKS:
            raise ValueError(f"max_lora_rank ({max_lora_rank}) must be one of {RANKS}")
        self.window = max_model_len or window
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=self.window))
        self.model = None

    def generate(self, prompts, sampling_params, *, lora_request=None, use_tqdm=True):
        self._note(sampling_params, lora_request)
        print("INFO", len(prompts), "prompts")
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        if _does("echo"):
            answers = rows
        else:
            self._load(lora_request)
            answers = map(self._answer, rows, sampling_params)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids))]) for ids in answers]

    def _note(self, sampling_params, lora_request):
        if "STAND_IN_NOTES" in os.environ:
            notes = {
                "pid": os.getpid(),
                "environment": dict(os.environ),
                "path": sys.path,
                "llm": self.given,
                "sampling": [vars(params) for params in sampling_params],
                "adapter": lora_request and lora_request.lora_path,
            }
            Path(os.environ["STAND_IN_NOTES"]).write_text(json.dumps(notes))

    def _load(self, lora_request):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        if self.model is not None:
            return
        given = self.given
        self.config = GenerationConfig.from_pretrained(given["model"])
        self.tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
        dtype = getattr(torch, given["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype)
        if lora_request is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(
                self.model, lora_request.lora_path, autocast_adapter_dtype=False
            )
            rank = self.model.peft_config["default"].r
            if not given["enable_lora"] or rank > given["max_lora_rank"]:
                raise ValueError(f"no room for an adapter of rank {rank}")
        self.model.eval()

    def _answer(self, prompt, params):
        import torch

        ends = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            ends.add(self.config.eos_token_id)
        draw = torch.Generator().manual_seed(params.seed)
        answer = []
        while len(answer) < params.max_tokens and len(prompt) + len(answer) < self.window:
            with torch.no_grad():
                scores = self.model(torch.tensor([prompt + answer])).logits[0, -1].float()
            for token_id, bias in (params.logit_bias or {}).items():
                scores[token_id] += bias
            answer.append(self._next(scores, prompt + answer, params, draw))
            text = self.tokenizer.decode(answer) if params.stop else ""
            if answer[-1] in ends or any(stop in text for stop in params.stop or ()):
                break
        return answer

    def _next(self, scores, before, params, draw):
        import torch
        from transformers import (
            RepetitionPenaltyLogitsProcessor,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        scores, before = scores[None], torch.tensor([before])
        if self.given["generation_config"] != "vllm" and self.config.repetition_penalty:
            scores = RepetitionPenaltyLogitsProcessor(self.config.repetition_penalty)(
                before, scores
            )
        if params.temperature == 0:
            return int(scores.argmax())
        scores = scores / params.temperature
        if params.top_k > 0:
            scores = TopKLogitsWarper(params.top_k)(before, scores)
        scores = TopPLogitsWarper(params.top_p)(before, scores)
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=draw))


def _does(what):
    """Do what was asked for, if it can be done here; tell whether it is `what`."""
    asked = os.environ.get("STAND_IN_DOES")
    if asked == "die":
        child = os.fork()  # it holds what this process has open
        if child == 0:
            time.sleep(600)
        print("child", child, file=sys.stderr)
        print("the GPU has fallen off the bus", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if asked == "raise":
        raise RuntimeError("no kernel\n image")
    if asked == "sleep":
        time.sleep(600)
    return asked == what
