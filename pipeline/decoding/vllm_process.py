"""The process that vLLM runs in: started, asked, and ended with all that it leaves.

It is `pipeline/decoding/vllm_worker.py`, in our Python or in the one that BASHRAC_VLLM_PYTHON
names. A message to it and a reply are a line of JSON each.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, StepFailedError

PYTHON = "BASHRAC_VLLM_PYTHON"
_WORKER = Path(__file__).with_name("vllm_worker.py")
_WAY_OUT = f"set {PYTHON} to the python of an environment that has vllm, or use engine: auto"
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


class Worker:
    """The process, from `start` until it is closed; a closed one may be started anew.

    Args:
        log: where vLLM's own messages go (they are added); None for a temporary file that is kept
            only after a failure.
    """

    def __init__(self, log: Path | None):
        self.log, self._keep_log = log, log is not None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it has been started, and not closed since."""
        return self._process is not None

    def start(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Start it and return what it says once the model is loaded.

        Raises:
            InputError: when vLLM is not there.
            StepFailedError: when the process ends before.
        """
        check_vllm()
        environment = child_environment(os.environ, cuda="LOCAL_RANK" in os.environ and _on_gpu())
        if self.log is None:
            handle, name = tempfile.mkstemp(prefix="bashrac-vllm-", suffix=".log")
            os.close(handle)
            self.log = Path(name)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [vllm_python(), str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                bufsize=0,
                start_new_session=True,
            )
        return self.ask(settings, "while it loaded the model")

    def ask(self, message: dict[str, Any], when: str) -> dict[str, Any]:
        """Send a message and return the reply.

        Raises:
            StepFailedError: when the process has failed or ended; its sentence says `when`.
        """
        assert self._process and self._process.stdin
        rest = memoryview(json.dumps(message).encode() + b"\n")
        # Whoever has gone cannot be told; why, `_hear` finds out.
        with contextlib.suppress(BrokenPipeError):
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
        return self._hear(when)

    def close(self, *, at_once: bool = False) -> None:
        """End the process, politely unless `at_once`; one that does not run is left alone."""
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
        if not self._keep_log and self.log is not None:
            self.log.unlink(missing_ok=True)
            self.log = None

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
        assert self.log
        said = reply["error"] or f"{_ending(process.returncode)}. {_tail(self.log)}"
        said = " ".join(said.split())[:_SHOWN_CHARACTERS]
        raise StepFailedError(
            f"vLLM's process failed {when}: {said}\n  its log: {self.log}\n"
            "  when that is mended run the same command again, or use engine: auto"
        )


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
