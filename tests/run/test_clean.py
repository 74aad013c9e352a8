"""`bashrac clean` on folders laid out as runs leave them, with real plans."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, digests
from filelock import FileLock

from pipeline.plan import changes
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import artifact
from pipeline.steps.artifact import HOLDER, LOCK
from pipeline.steps.context import write_spec
from pipeline.steps.spec import StepSpec
from pipeline.text import format_bytes


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def leave(recipe_dict, write_recipe, runs):
    """What a finished run of the recipe leaves, as far as `clean` looks at it; returns its plan."""

    def leave(*overrides, remember=True):
        plan = make_plan(load_recipe(write_recipe(recipe_dict), overrides))
        for step in plan.steps:
            folder = write_spec(step, runs, processes=1, use_cpu=True).parent
            (folder / "rows.jsonl").write_text("{}\n" * 1000)
            artifact.write_json(folder / "record.json", {"ended": "2026-03-01T10:00:00+00:00"})
        if remember:
            changes.remember(plan, runs)
        return plan

    return leave


def folders(plan):
    return {step.directory(Path("runs")).name for step in plan.steps}


def names(runs):
    return {path.name for path in (runs / "steps").iterdir()}


def test_what_a_last_run_points_at_stays_and_an_earlier_text_s_goes(leave, runs, bashrac):
    old = leave()
    (runs / "judge").mkdir()
    (runs / "judge" / "replies.jsonl").write_text("{}\n")
    (runs / "tiny" / "logs").mkdir()
    (runs / "tiny" / "logs" / "sft.log").write_text("said\n")
    new = leave("trainer.max_steps=3")
    gone = folders(old) - folders(new)
    before = digests(runs)
    listed = bashrac("clean")
    assert listed.returncode == 0 and digests(runs) == before
    assert f"{len(gone)} folders, " in listed.stdout
    assert "nothing removed, since there is nobody to ask; --yes removes them" in listed.stdout
    assert "sft: train, seed 0, made 2026-03-01" in listed.stdout
    assert {line.split()[0] for line in listed.stdout.splitlines() if ", made" in line} == gone

    removed = bashrac("clean", "--yes")
    assert removed.returncode == 0 and f"removed {len(gone)} folders" in removed.stdout
    kept = {path: digest for path, digest in before.items() if Path(path).parent.name not in gone}
    assert digests(runs) == kept
    assert bashrac("clean", "--yes").stdout.startswith("nothing to remove")


def test_a_folder_that_is_not_there_is_no_clean_one(bashrac):
    listed = bashrac("clean", "--runs", "rnus")
    assert listed.returncode == 2 and "there is no folder rnus/steps" in listed.stderr


def test_a_variant_is_kept_under_a_name_of_its_own(leave, runs, bashrac):
    """Without one, the second `--set` run is the recipe's last, and the first is listed."""
    leave("seeds=[0]")
    leave("seeds=[1]")
    assert "sft: train, seed 0" in bashrac("clean").stdout
    leave("seeds=[0]", "name=tiny-first")
    assert bashrac("clean").stdout.startswith("nothing to remove")


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_asks(leave, runs, bashrac, answer, goes):
    old = leave(remember=False)
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = bashrac("clean", stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert f"remove {len(folders(old))} folders, " in done.stdout and "? [y/N]" in done.stdout
    assert done.returncode == 0
    assert names(runs) == (set() if goes else folders(old))


@pytest.mark.parametrize("written", ["now", "by an earlier version"])
@pytest.mark.parametrize(("kind", "kept"), [("contexts", 1), ("gap-losses", 4)])
def test_a_step_that_a_process_works_on_stays_with_what_it_reads(
    leave, runs, bashrac, recipe_dict, kind, kept, written
):
    recipe_dict["evaluate"] = ["gap"]
    plan = leave(remember=False)
    if written == "by an earlier version":
        for one in plan.steps:
            flat = {
                "kind": one.kind,
                "identity": one.identity,
                "inputs": one.as_json(runs)["locations"],
            }
            artifact.write_json(one.directory(runs) / artifact.SPEC, flat)
    step = next(s for s in plan.steps if (s.stage, s.kind) == ("bash", kind))
    read = _all_read(step)
    assert len(read) >= kept
    (step.directory(runs) / "record.json").unlink()
    with FileLock(step.directory(runs) / "lock"):
        assert bashrac("clean", "--yes").returncode == 0
        assert names(runs) == {one.directory(runs).name for one in (step, *read)}
    assert bashrac("clean", "--yes").returncode == 0, "a lock that nobody holds keeps nothing"
    assert names(runs) == set()


def _all_read(step):
    read = [value for value in step.inputs.values() if isinstance(value, StepSpec)]
    return [*read, *(more for one in read for more in _all_read(one))]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sft/train/seed 0": {"kind": "train"}}'])
def test_a_last_run_that_cannot_be_read_is_a_refusal(leave, runs, bashrac, content):
    leave(remember=False)
    (runs / "other").mkdir()
    (runs / "other" / "plan.json").write_text(content)
    before = digests(runs)
    done = bashrac("clean", "--yes")
    assert done.returncode == 2
    assert "nothing removed: runs/other/plan.json cannot be read" in done.stderr
    assert "run that recipe again" in done.stderr
    assert digests(runs) == before


def test_what_killed_writers_left_goes_and_what_is_being_written_stays(leave, runs, bashrac):
    plan = leave()
    folder = plan.steps[1].directory(runs)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / f".rows.jsonl.{dead.pid}.tmp").write_text("{}")
    (folder / ".model.tmp").mkdir()
    (folder / ".model.tmp" / "weights").write_text("half")
    (folder / f".record.json.{os.getpid()}.tmp").write_text("{")
    (runs / "tiny" / f".report.md.{dead.pid}.tmp").write_text("outside runs/steps")
    done = bashrac("clean", "--yes")
    assert "removed 2 leftovers, 6 bytes" in done.stdout
    assert [path.name for path in folder.glob(".*")] == [f".record.json.{os.getpid()}.tmp"]
    assert (runs / "tiny" / f".report.md.{dead.pid}.tmp").exists()
    assert folders(plan) == names(runs)


def test_nothing_but_folders_named_like_steps_is_touched(leave, runs, bashrac, tmp_path):
    plan = leave(remember=False)
    moved = plan.steps[0].directory(runs)
    shutil.move(moved, tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")  # somebody made room on a disk
    (runs / "steps" / "notes").mkdir()
    (runs / "steps" / "notes.txt").write_text("mine")
    assert bashrac("clean", "--yes").returncode == 0
    assert names(runs) == {moved.name, "notes", "notes.txt"}
    assert (tmp_path / "elsewhere" / "record.json").exists()


def test_killed_midway_it_leaves_whole_results_or_none(leave, runs, bashrac, injected):
    """Killed as soon as the first folder has gone from its place, its files partly removed."""
    times = 3
    for attempt in range(times):
        plan = leave(remember=False)
        for step in plan.steps:
            for number in range(100):
                (step.directory(runs) / f"file{number}").write_text("")
        before = {name: set(os.listdir(runs / "steps" / name)) for name in folders(plan)}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "clean", "--yes", "--runs", str(runs)],
            cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        while folders(plan) <= names(runs) and process.poll() is None:
            time.sleep(0.0005 * attempt)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        left = names(runs) & folders(plan)
        for name in left:  # a folder that was about to be removed may hold a lock
            assert set(os.listdir(runs / "steps" / name)) - {LOCK, HOLDER} == before[name]
        assert all(name.startswith(".") for name in names(runs) - left)
        assert bashrac("clean", "--yes").returncode == 0
        assert names(runs) == set(), "the next one goes on"
    injected("bashrac clean killed", "SIGKILL while it removes", times=times,
             outcome="every folder whole or gone; the next clean removed the rest")  # fmt: skip


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (1.2e9, "1.2 GB"),
                        (3.2e12, "3200.0 GB")],
)  # fmt: skip
def test_sizes_are_words(size, words):
    assert format_bytes(size) == words
