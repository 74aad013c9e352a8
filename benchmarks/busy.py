"""What does work on a CPU take beside other programs, and what do our settings gain?

    python benchmarks/busy.py [--seconds 20]

Times a small Llama in a process of its own, forward and backward passes ("training") and passes of
one new token for 8 rows ("decoding", 20 at a time): alone, and beside one and two programs that do
nothing but compute, each started in a session of its own, as by another user, so that no priority
of ours moves them. "As it was": as many threads as cores, which spin while they wait. Then one
setting at a time, and what `bashrac run` sets on a CPU. Median seconds, and how many times what it
took alone as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.hardware.threads import threads_of_launch  # noqa: E402
from pipeline.recipe.shipped import read_launch  # noqa: E402
from pipeline.run.launcher import CPU_WAITING, environment  # noqa: E402 - from this checkout

CORES = str(os.cpu_count())
SETTINGS = {
    "as it was": {"OMP_NUM_THREADS": CORES},
    "waiting threads sleep": {"OMP_NUM_THREADS": CORES, "OMP_WAIT_POLICY": "PASSIVE"},
    "they spin, then sleep": {"OMP_NUM_THREADS": CORES, **CPU_WAITING},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "bashrac": None,  # whatever it sets
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--measure", choices=("training", "decoding"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(time_work(given.measure, given.seconds)))
        return
    for work in ("training", "decoding"):
        print(f"| {work} | alone | beside one | beside two |\n| --- | --- | --- | --- |")
        first = None
        for name, variables in SETTINGS.items():
            cells = []
            for programs in range(3):
                with busy(programs):
                    seconds = measure(work, variables, given.seconds)
                first = first or seconds
                cells.append(f"{seconds:.2f} s ({seconds / first:.2f})")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        print()
    print(f"{platform.machine()}, {CORES} cores")


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Have programs compute for as long as it lasts."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command, start_new_session=True) for _ in range(programs)]
    try:
        time.sleep(1)
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def measure(work: str, variables: dict[str, str] | None, seconds: float) -> float:
    """Median seconds of some work in a process with these variables, None for bashrac's own."""
    plain = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    os.environ.clear()
    os.environ.update(plain)
    surroundings = environment(read_launch("cpu")) if variables is None else plain | variables
    command = [sys.executable, __file__, "--measure", work, "--seconds", str(seconds)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=surroundings,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def time_work(work: str, seconds: float) -> list[float]:
    """Seconds of each piece of work, once the process has had the time to adapt."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=8,
        num_attention_heads=6, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, 8192, (8, 64))

    def train() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    @torch.no_grad()
    def decode() -> None:
        past = model(input_ids=ids, use_cache=True).past_key_values
        for _ in range(20):
            past = model(input_ids=ids[:, :1], past_key_values=past).past_key_values

    once = train if work == "training" else decode
    threads = threads_of_launch()
    began, taken = time.monotonic(), [seconds]
    while (now := time.monotonic()) - began < seconds:
        once()
        # What began in the second half counts, or else what was last.
        taken = taken if now - began > seconds / 2 else []
        taken.append(time.monotonic() - now)
        if threads is not None:
            threads.adapt()
    return taken


if __name__ == "__main__":
    main()
