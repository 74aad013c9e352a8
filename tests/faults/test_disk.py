"""A disk that is full or read-only: one sentence, nothing lost, and on it goes."""

import contextlib
import os
import re
import shutil
import subprocess

import pytest


def _mount(folder, *options):
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True
    ).returncode


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a file system of so many bytes at tmp_path/disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or _mount(disk, "size=64k"):
        pytest.skip("mounting a small tmpfs needs root")

    def resize(size: int, *options) -> None:
        done = subprocess.run(
            ["mount", "-o", ",".join(["remount", f"size={size}", *options]), str(disk)],
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    resize.disk = disk
    yield resize
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _records(disk):
    return {path: path.read_bytes() for path in disk.glob("runs/steps/*/record.json")}


def _fill(folder):
    """Take all space but one page."""
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
    os.truncate(folder / "ballast", (folder / "ballast").stat().st_size - 4096)


def test_a_full_disk_loses_nothing_and_the_run_goes_on_when_there_is_space(
    bashrac, recipe_dict, write_recipe, small_disk, injected
):
    """Full before anything is written, in a checkpoint, in the model, in a row file."""
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    recipe_dict["trainer"]["save_steps"] = 1
    path = write_recipe(recipe_dict)
    runs, failed_in, kept = small_disk.disk / "runs", [], {}
    for size in (8 << 10, 200 << 10, 600 << 10, 1000 << 10, 4 << 20):
        small_disk(size)
        if size == 4 << 20:  # room for all but a few bytes, from the first row file on
            assert bashrac("run", path, "--runs", runs, "--set", "evaluate=[]").returncode == 0
            kept = _records(small_disk.disk)
            _fill(small_disk.disk)
        done = bashrac("run", path, "--runs", runs)
        assert done.returncode == 1, done.stdout + done.stderr
        assert re.search(r"free space|has \d+ MB free", done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        assert all(file.read_bytes() == data for file, data in kept.items())
        kept = _records(small_disk.disk)
        place, _, _ = done.stderr.partition(" failed:")
        failed_in.append(place if place != done.stderr else "the run's own files")
    (small_disk.disk / "ballast").unlink()
    assert bashrac("run", path, "--runs", runs).returncode == 0
    assert all(file.read_bytes() == data for file, data in kept.items())
    injected(
        "the disk is full",
        f"tmpfs of 8 kB to 4 MB: full in {', '.join(dict.fromkeys(failed_in))}",
        len(failed_in),
        "a sentence with the way out, exit 1; earlier records unchanged; the same command ends "
        "once there is space",
    )


def test_a_disk_that_turns_read_only_is_a_sentence(
    bashrac, recipe_dict, write_recipe, small_disk, injected
):
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}}
    path = write_recipe(recipe_dict)
    small_disk(8 << 20)
    runs = small_disk.disk / "runs"
    assert bashrac("run", path, "--runs", runs, "--set", "evaluate=[]").returncode == 0
    kept = _records(small_disk.disk)
    small_disk(8 << 20, "ro")
    done = bashrac("run", path, "--runs", runs)
    assert done.returncode == 1 and "--runs DIR" in done.stderr and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr
    report = bashrac("report", path, "--runs", runs)
    assert report.returncode == 0 and "not finished" in report.stdout
    small_disk(8 << 20, "rw")
    assert bashrac("run", path, "--runs", runs).returncode == 0
    assert all(file.read_bytes() == data for file, data in kept.items())
    injected("the disk is read-only", "a tmpfs remounted between two runs", 1,
             "a sentence, exit 1; reports are still read; on it goes when it is writable")  # fmt: skip
