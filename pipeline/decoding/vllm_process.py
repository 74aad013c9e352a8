"""Starts the vLLM worker process, exchanges messages with it, and cleans up after it.

The process runs `pipeline/decoding/vllm_worker.py` under this Python, or the one set in
BASHRAC_VLLM_PYTHON. Each message and each reply is one line of JSON.
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
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, StepFailedError

if TYPE_CHECKING:
    from pipeline.decoding.vllm_worker import Ready, Request, Settings

PYTHON = "BASHRAC_VLLM_PYTHON"
_WORKER = Path(__file__).with_name("vllm_worker.py")
_WAY_OUT = f"set {PYTHON} to the python of an environment that has vllm, or use engine: auto"
# Variables that a launcher sets for our processes; vLLM would mistake them for its own.
_LAUNCH = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
}  # fmt: skip
_LAUNCH_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "PARALLELISM_CONFIG_")
_DEFAULTS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; by default vLLM takes nearly all memory of a CPU machine
}
_CLOSE_S, _TERMINATE_S, _POLL_S = 20.0, 5.0, 1.0
_SHOWN_LINES, _SHOWN_CHARACTERS = 3, 600


def vllm_python() -> str:
    """The interpreter that runs vLLM."""
    return os.environ.get(PYTHON) or sys.executable


def check_vllm() -> None:
    """Check that the interpreter has vLLM, without importing it.

    Raises:
        InputError: if the interpreter does not run, or has no vLLM.
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
        said = "".join(f" (it printed: {line})" for line in done.stderr.strip().splitlines()[-1:])
        raise InputError(
            f"engine: vllm needs the package vllm, which {python} does not have{said}; install it, "
            f"preferably in a separate environment, and {_WAY_OUT}"
        )


def child_environment(environment: Mapping[str, str], *, cuda: bool) -> dict[str, str]:
    """Return environment variables for vLLM: no launcher variables, and only our rank's GPU.

    Args:
        environment: the variables of this process.
        cuda: whether this process runs on a GPU.

    Raises:
        InputError: if CUDA_VISIBLE_DEVICES lists no GPU for our rank.
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
                f"process {rank} of this machine has no GPU in CUDA_VISIBLE_DEVICES={listed}; list "
                "one GPU per process there, or launch fewer processes"
            )
        kept["CUDA_VISIBLE_DEVICES"] = devices[int(rank)].strip()
    # Without it Python would put the worker's folder on sys.path, and our modules could shadow
    # others of the same name.
    return {**_DEFAULTS, **kept, "PYTHONSAFEPATH": "1"}


class Worker:
    """The worker process, from `start` to `close`; it can be started again after that.

    Args:
        log: file to which vLLM's own messages are appended; None for a temporary file, which is
            kept only after a failure.
    """

    def __init__(self, log: Path | None):
        self.log, self._keep_log = log, log is not None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether the process has been started and not closed."""
        return self._process is not None

    def start(self, settings: Settings) -> Ready:
        """Start the process and return its first reply, sent once the model is loaded.

        Raises:
            InputError: if vLLM is not installed.
            StepFailedError: if the process ends before the model is loaded.
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

    def ask(self, message: Settings | Request, when: str) -> Any:
        """Send a message and return the reply.

        Raises:
            StepFailedError: if the process failed or ended; `when` goes into its message.
        """
        assert self._process and self._process.stdin
        rest = memoryview(json.dumps(message).encode() + b"\n")
        # A dead process breaks the pipe; `_hear` finds out why it died.
        with contextlib.suppress(BrokenPipeError):
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
        return self._hear(when)

    def close(self, *, at_once: bool = False) -> None:
        """End the process if it runs, giving it time to finish unless `at_once`."""
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

    def _hear(self, when: str) -> Any:
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
            "  fix the cause and run the same command again, or use engine: auto"
        )


def _on_gpu() -> bool:
    import torch

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    return torch.cuda.is_available() and not on_cpu


def _read_line(process: subprocess.Popen[bytes]) -> bytes | None:
    """Read one line of a reply; None if the process has ended instead.

    A child of a killed worker may hold the pipe open, so waiting for end of file is not enough.
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
    """End the process and its children, which may hold GPU memory."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_TERMINATE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it leads its own session
    process.wait()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"it exited with code {code}"
    name = signal.Signals(-code).name
    return f"it was killed by {name}" + (", often for lack of memory" if code == -9 else "")


def _tail(log: Path) -> str:
    """The last lines of a log, for an error message."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "It wrote nothing"
    return "Its last lines: " + " | ".join(lines[-_SHOWN_LINES:])
