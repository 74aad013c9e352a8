"""Free answers through vLLM, in a process of its own.

vLLM does not give GPU memory back inside a process, so training never shares one with it: the
process runs `pipeline/vllm_worker.py` and ends with the engine. Its Python is ours, or the one that
BASHRAC_VLLM_PYTHON names, since vLLM pins versions of transformers that training may not take.

Decisions:
1. Every answer has a seed of its own, made of (seed, row id, sample), so what is drawn does not
   depend on company. Scores still round otherwise in another batch, as they do in 16 bits anywhere;
   with VLLM_BATCH_INVARIANT=1 vLLM avoids that too, on GPUs that can.
2. The model's own generation config and end tokens are left out of account.
3. vLLM runs inside that one process (VLLM_ENABLE_V1_MULTIPROCESSING=0): its scheduling is then
   reproducible, its errors name their cause, and nothing is left when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifact
from pipeline.errors import InputError, StepFailedError
from pipeline.model import UNTRUSTED, base_of, locate
from pipeline.weights import Trust, check_pickles

if TYPE_CHECKING:
    from pipeline.generate import Prompt

PYTHON = "BASHRAC_VLLM_PYTHON"
_WORKER = Path(__file__).with_name("vllm_worker.py")
_WAY_OUT = f"set {PYTHON} to the python of an environment that has vllm, or use engine: auto"
# Ranks that vLLM has room for; an adapter takes the next larger one.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_NOT_READ = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
# What a launcher tells its processes; vLLM would take it for its own.
_LAUNCH = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip
_LAUNCH_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "PARALLELISM_CONFIG_")
_DEFAULTS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; on a CPU vLLM would else take nearly all memory
}
_CLOSE_S, _TERMINATE_S, _POLL_S = 20.0, 5.0, 1.0
_SHOWN_LINES, _SHOWN_CHARACTERS = 3, 600


def vllm_python() -> str:
    """The interpreter that runs vLLM."""
    return os.environ.get(PYTHON) or sys.executable


def check_vllm() -> None:
    """See whether the interpreter has vLLM, without importing it anywhere.

    Raises:
        InputError: when there is no such interpreter, or it has no vLLM.
    """
    python = vllm_python()
    code = "import sys, importlib.util as u; sys.exit(u.find_spec('vllm') is None)"
    try:
        done = subprocess.run(
            [python, "-c", code],
            env=child_environment(os.environ, cuda=False),
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise InputError(
            f"{PYTHON} names {python}, which cannot be run ({error.strerror}); {_WAY_OUT}"
        ) from None
    if done.returncode:
        said = "".join(f" (it says: {line})" for line in done.stderr.strip().splitlines()[-1:])
        raise InputError(
            f"engine: vllm needs the package vllm, which {python} does not have{said}; install it, "
            f"best in an environment of its own, and {_WAY_OUT}"
        )


def child_environment(environment: Mapping[str, str], *, cuda: bool) -> dict[str, str]:
    """Return the environment of vLLM's process: no launch of ours, and the GPU of our rank only.

    Args:
        environment: ours.
        cuda: whether this process works on a GPU.

    Raises:
        InputError: when our rank has no GPU in CUDA_VISIBLE_DEVICES.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _LAUNCH and not name.startswith(_LAUNCH_PREFIXES)
    }
    rank = environment.get("LOCAL_RANK")
    if cuda and rank is not None:
        listed = environment.get("CUDA_VISIBLE_DEVICES")
        devices = listed.split(",") if listed else [str(number) for number in range(int(rank) + 1)]
        if int(rank) >= len(devices):
            raise InputError(
                f"process {rank} of this machine has no GPU in CUDA_VISIBLE_DEVICES={listed}; name "
                "one for each process there, or launch fewer processes"
            )
        kept["CUDA_VISIBLE_DEVICES"] = devices[int(rank)].strip()
    # The worker's folder is this package's, whose modules must not pass for others of their names.
    return {**_DEFAULTS, **kept, "PYTHONSAFEPATH": "1"}


def seeds_of(prompts: Sequence[Prompt], seed: int) -> list[int]:
    """Return a seed per answer, 0 to 2^63 - 1, from (seed, row id, sample) alone."""
    import torch

    from pipeline import noise

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
        self._log, self._keep_log = log, log is not None
        self._window = 0
        self.version: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

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

        Returns:
            Per prompt the new token ids, with the stop token last when the answer was ended by one.

        Raises:
            InputError: when vLLM is not there.
            StepFailedError: when its process ends before it has answered.
            ValueError: when a prompt and its answer are longer than the model may read.
        """
        if not prompts:
            return []
        if self._process is None:
            self._start()
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
        }
        self._tell(request)
        return self._hear("while it answered")["answers"]

    def close(self, *, at_once: bool = False) -> None:
        """End the process, politely unless `at_once`; a closed engine starts anew when asked."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin and process.stdout
        with contextlib.suppress(OSError):
            process.stdin.close()
        if not at_once:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_CLOSE_S)
        _end_group(process)
        process.stdout.close()
        if not self._keep_log and self._log is not None:
            self._log.unlink(missing_ok=True)
            self._log = None

    def _start(self) -> None:
        check_vllm()
        environment = child_environment(os.environ, cuda="LOCAL_RANK" in os.environ and _on_gpu())
        if self._log is None:
            handle, name = tempfile.mkstemp(prefix="bashrac-vllm-", suffix=".log")
            os.close(handle)
            self._log = Path(name)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [vllm_python(), str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                bufsize=0,
                start_new_session=True,
            )
        self._tell(self._settings)
        ready = self._hear("while it loaded the model")
        self._window, self.version = ready["window"], ready["version"]

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process and self._process.stdin
        rest = memoryview(json.dumps(message).encode() + b"\n")
        # Whoever has gone cannot be told; why, `_hear` finds out.
        with contextlib.suppress(BrokenPipeError):
            while rest:
                rest = rest[self._process.stdin.write(rest) :]

    def _hear(self, when: str) -> dict[str, Any]:
        """Read the next reply."""
        assert self._process
        line = _read_line(self._process)
        reply = json.loads(line) if line else {"error": None}
        if "error" not in reply:
            return reply
        process, self._keep_log = self._process, True
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is writing its traceback
            process.wait(timeout=_TERMINATE_S)
        self.close(at_once=True)
        assert self._log
        said = reply["error"] or f"{_ending(process.returncode)}. {_tail(self._log)}"
        said = " ".join(said.split())[:_SHOWN_CHARACTERS]
        raise StepFailedError(
            f"vLLM's process failed {when}: {said}\n  its log: {self._log}\n"
            "  when that is mended run the same command again, or use engine: auto"
        )


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


def _on_gpu() -> bool:
    import torch

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    return torch.cuda.is_available() and not on_cpu


def _read_line(process: subprocess.Popen[bytes]) -> bytes | None:
    """Read a line of replies; None where the process has ended instead.

    A child of a killed worker may hold the pipe open, so its end alone does not tell.
    """
    assert process.stdout
    parts: list[bytes] = []
    while not (parts and parts[-1].endswith(b"\n")):
        ended = process.poll() is not None
        if not select.select([process.stdout], [], [], 0 if ended else _POLL_S)[0]:
            if ended:
                return None
            continue
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            return None
        parts.append(part)
    return b"".join(parts)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process if it runs, and whatever it leaves: vLLM's own children hold GPU memory."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_TERMINATE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own
    process.wait()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"it ended with code {code}"
    name = signal.Signals(-code).name
    return f"it was ended by {name}" + (", often for want of memory" if code == -9 else "")


def _tail(log: Path) -> str:
    """The last lines of a log, for a sentence."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "It wrote nothing"
    return "Its last lines: " + " | ".join(lines[-_SHOWN_LINES:])
