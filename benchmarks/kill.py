"""What does kill -9 at any moment cost? Nothing but the time since the last thing kept.

    python benchmarks/kill.py [--kills 50] [--seed 0] [--moment record]

Runs recipes/demo.yaml, all arms, on a tiny random model in float32, with answers judged by a server
on loopback: once undisturbed, then killed with SIGKILL at seeded random moments and run again until
it ends, over and over, until enough kills were made. Half of the kills hit every process at once,
half only `bashrac run` itself; --moment aims at one kind of moment. Compares what each run ended
with, and exits 1 where a promise of docs/reliability.md does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# Every process of a run tells when it opens a result of a folder that is neither finished nor its
# own, or a record that is there in part.
WATCH = """
import os, sys
steps, log = os.environ["KILL_STEPS"] + os.sep, os.environ["KILL_LOG"]
run = {"step.json", "error.json", "progress.json", "lock", "holder.json", "record.json"}

def ours(folder):
    try:
        with open(folder + "/holder.json") as file:
            return f'"process": {os.getpid()},' in file.read()
    except OSError:
        return False

def watch(event, given):
    if event != "open" or not isinstance(given[0], (str, os.PathLike)):
        return
    path = os.path.abspath(os.fspath(given[0]))
    if not isinstance(path, str) or not path.startswith(steps) or given[2] & os.O_ACCMODE:
        return
    name, _, inner = path[len(steps):].partition(os.sep)
    if not inner or inner in run or inner.startswith("."):
        return
    if not os.path.exists(steps + name + "/record.json") and not ours(steps + name):
        with open(log, "a") as file:
            file.write(path + chr(10))

sys.addaudithook(watch)
with open(log, "a") as file:
    file.write("watched" + chr(10))
"""
MOMENTS = ("any", "start", "rows", "training", "checkpoint", "record", "judging", "report")


def main() -> int:
    """Run it all and print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moment", choices=MOMENTS, action="append")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), random.Random(given.seed), given.moment or MOMENTS)
        trial.undisturbed()
        began = time.monotonic()
        while sum(trial.kills.values()) < given.kills:
            trial.killed(given.kills - sum(trial.kills.values()))
        return trial.tell(time.monotonic() - began)


class Trial:
    """A recipe, a judge, and what came of running the one with the other."""

    def __init__(self, folder: Path, random_: random.Random, moments: Sequence[str]):
        from judge_servers import Server

        self.folder, self.random, self.moments = folder, random_, moments
        self.server = Server(opinion, delay=0.01)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.kills: Counter[str] = Counter()
        self.broken: list[str] = []
        self.runs = self.same_weights = self.all_weights = self.repeated = self.asked = 0
        self.disk: list[int] = []
        self.expected: dict[str, Any] = {}
        (folder / "watch").mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(WATCH)
        self.recipe = self._write_recipe()

    def _write_recipe(self) -> Path:
        from conftest import save_tiny_model

        recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
        baseline = [
            {"instruction": f"Say {n}.", "output": f"{n}", "generator": "stand-in", "dataset": "x"}
            for n in range(24)
        ]
        (self.folder / "baseline.json").write_text(json.dumps(baseline))
        recipe |= {
            "model": save_tiny_model(self.folder / "model"),
            "dtype": "float32",
            "generation": {"max_new_tokens": 24, "batch_tokens": 2048, "dtype": "float32"},
            "trainer": {**recipe["trainer"], "bf16": False, "save_steps": 2},
            "evaluate": ["gsm8k", "alpaca"],
            "judge": {"engine": "openai", "model": "stand-in", "base_url": self.server.url},
            "benchmarks": {
                "alpaca": {
                    "data": str(self.folder / "baseline.json"),
                    "gamed": None,
                    "difficulty": None,
                    "max_new_tokens": 24,
                }
            },
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    def undisturbed(self) -> None:
        """Run once, and remember what came of it."""
        run = Run(self, self.folder / "undisturbed")
        run.start()
        code, disk = run.finish()
        if code:
            raise SystemExit(f"the undisturbed run ends with {code}:\n{run.output.read_text()}")
        self.expected, self.disk = run.results(), [disk]
        self.server.bodies.clear()

    def killed(self, most: int) -> None:
        """Run to the end with kills in between, at most so many, and compare."""
        runs = self.folder / f"killed-{self.runs}"
        self.runs += 1
        largest, kills = 0, 0
        while True:
            run = Run(self, runs)
            run.start()
            if kills < most:
                moment = self.random.choice(self.moments)
                if run.wait_for(moment, self.random):
                    run.kill(everything=self.random.random() < 0.5)
                    self.kills[moment] += 1
                    kills += 1
                    continue
            code, disk = run.finish()
            largest = max(largest, disk)
            if code:
                self.broken.append(
                    f"{runs.name} ends with {code}: {run.output.read_text()[-2000:]}"
                )
                return
            break
        self._compare(run, largest)
        shutil.rmtree(runs)

    def _compare(self, run: Run, disk: int) -> None:
        found = run.results()
        for name in self.expected.keys() | found.keys():
            expected, got = self.expected.get(name), found.get(name)
            if name.endswith(".safetensors"):
                self.all_weights += 1
                self.same_weights += expected == got
            elif expected != got:
                self.broken.append(f"{run.runs.name}: {name} is not that of the undisturbed run")
        questions = Counter(json.dumps(body, sort_keys=True) for body in self.server.bodies)
        self.asked += len(questions)
        self.repeated += sum(questions.values()) - len(questions)
        self.server.bodies.clear()
        for file in (run.runs / "judge").glob("*.jsonl"):
            keys = Counter(
                json.loads(line)["key"] for line in file.read_text().splitlines() if line
            )
            self.broken += [f"{file.name} has {key} twice" for key, n in keys.items() if n > 1]
        self.disk.append(disk)
        left = [*run.runs.rglob(".*.tmp"), *run.runs.rglob("checkpoint-*")]
        self.broken += [f"left behind: {path}" for path in left if "/steps/" in str(path)]

    def tell(self, seconds: float) -> int:
        """Print the figures and return the exit code."""
        total = sum(self.kills.values())
        read = (self.folder / "read").read_text().splitlines()
        watched = read.count("watched")
        self.broken += [f"read though not finished: {line}" for line in read if line != "watched"]
        kinds = ", ".join(f"{self.kills[moment]} {moment}" for moment in MOMENTS)
        outcome = (
            f"{self.runs} of {self.runs} runs ended; rows, grades and report as undisturbed; "
            f"{self.same_weights} of {self.all_weights} weight files bit for bit the same; "
            f"no unfinished folder read by {watched} processes; "
            f"{self.repeated} of {self.asked} questions asked again (in flight when killed); "
            f"disk at most {max(self.disk[1:]) / self.disk[0]:.2f} of the undisturbed run's"
        )
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, {seconds / 60:.0f} min of killed runs"
        )
        print(f"kills: {total} ({kinds})")
        print(outcome)
        for line in dict.fromkeys(self.broken):
            print(f"BROKEN: {line}")
        return 1 if self.broken else 0


def opinion(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """A verdict in the labels of alpaca_eval_2 that depends on all that is asked."""
    from judge_servers import completion

    share = (hashlib.sha256(json.dumps(body["messages"]).encode()).digest()[0] + 1) / 258
    return 200, completion("m", [("m", math.log(1 - share)), ("M", math.log(share))])


class Run:
    """One `bashrac run`, until it ends or is killed."""

    def __init__(self, trial: Trial, runs: Path):
        self.trial, self.runs = trial, runs
        self.output = runs.with_suffix(".output")

    def start(self) -> None:
        """Start it, every process watched."""
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.trial.folder / 'watch'}{os.pathsep}{ROOT}",
            "KILL_STEPS": str(self.runs / "steps"),
            "KILL_LOG": str(self.trial.folder / "read"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "pipeline", "run", str(self.trial.recipe)]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--runs", str(self.runs)], stdout=output, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, moment: str, random_: random.Random) -> bool:
        """Wait for a moment of this kind; returns whether it came before the end."""
        came = self._signs(moment, random_)
        while self.process.poll() is None:
            if came():
                time.sleep(random_.uniform(0, 0.3 if moment in ("rows", "training") else 0.02))
                return self.process.poll() is None
            time.sleep(0.001)
        return False

    def _signs(self, moment: str, random_: random.Random) -> Callable[[], bool]:
        """What says that a moment has come."""
        began, asked = time.monotonic(), self.trial.server.asked
        after = random_.uniform(0, 3 if moment == "start" else 40)
        steps = self.runs / "steps"
        finished = len(list(steps.glob("*/record.json"))) + random_.randrange(3)
        more = asked + random_.randint(1, 20)

        def progress(unit: str) -> bool:
            return any(unit in _text(file) for file in steps.glob("*/progress.json"))

        def half_done(pattern: str, last: str) -> bool:
            return any(not (path.parent / last).exists() for path in self.runs.glob(pattern))

        results = ("history.json", "rows.jsonl", "samples.jsonl", "pairs.jsonl", "result.json")
        return {
            "any": lambda: time.monotonic() - began > after,
            "start": lambda: time.monotonic() - began > after,
            "rows": lambda: progress("rows"),
            "training": lambda: progress("optimizer"),
            "checkpoint": lambda: half_done(
                "steps/*/checkpoints/checkpoint-*/*", "trainer_state.json"
            ),
            "record": lambda: (
                len(list(steps.glob("*/record.json"))) >= finished
                and any(half_done(f"steps/*/{name}", "record.json") for name in results)
            ),
            "judging": lambda: self.trial.server.asked >= more,
            "report": lambda: any(self.runs.glob("demo/.report.*")),
        }[moment]

    def kill(self, *, everything: bool) -> None:
        """SIGKILL every process at once, or this one only and wait for the others to follow."""
        from conftest import processes_naming

        others = processes_naming(str(self.runs)) if everything else []
        os.kill(self.process.pid, signal.SIGKILL)
        for pid in others:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def finish(self) -> tuple[int, int]:
        """Wait for the end; returns the exit code and the most bytes there were on disk."""
        most = 0
        while self.process.poll() is None:
            most = max(most, _size(self.runs))
            time.sleep(0.5)
        return self.process.returncode, most

    def results(self) -> dict[str, Any]:
        """Digest of every file of every step, and the report without times."""
        from conftest import result_digests

        report = json.loads((self.runs / "demo" / "report.json").read_text())
        for cost in report["costs"]:
            cost.pop("seconds", None)
        return {**result_digests(self.runs), "report": report}


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
