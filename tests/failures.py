"""What a failed test shows of the commands it ran: their exit codes, last lines and logs."""

import shlex
import subprocess
from pathlib import Path

LINES = 20
LOGS = 3


def sections(folder: Path, ran: list) -> list[tuple[str, str]]:
    """Title and text of every command that ran in a folder, and of the logs written last."""
    shown = [_command(arguments, done) for arguments, done in ran]
    logs = sorted(folder.glob("**/logs/*.log"), key=lambda file: file.stat().st_mtime)
    return shown + [
        (str(file.relative_to(folder)), _last_lines(file.read_bytes())) for file in logs[-LOGS:]
    ]


def _command(arguments, done: subprocess.CompletedProcess | subprocess.TimeoutExpired):
    if isinstance(done, subprocess.TimeoutExpired):
        end = f"killed after {done.timeout:g} s"
    else:
        end = f"exit code {done.returncode}"
    streams = {"stdout": done.stdout, "stderr": done.stderr}
    text = "".join(f"{name}:\n{_last_lines(one)}\n" for name, one in streams.items() if one)
    return f"{shlex.join(['bashrac', *map(str, arguments)])}: {end}", text


def _last_lines(text: str | bytes) -> str:
    if isinstance(text, bytes):  # also of a command that was killed: it has printed no text yet
        text = text.decode(errors="backslashreplace")
    lines = text.splitlines()
    left_out = [f"[{len(lines) - LINES} lines before]"] if len(lines) > LINES else []
    return "\n".join(left_out + lines[-LINES:])
