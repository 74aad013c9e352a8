"""What a run needs of its machine: little of what developers take for granted."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, tiny_recipe


@pytest.fixture
def bare(tmp_path, tiny_model):
    """Run the command in a folder whose name has spaces and other letters, in a bare environment.

    No home, no git, a terminal of ASCII letters and 60 columns, one core.
    """
    place = tmp_path / "Größe und mehr ✓"
    place.mkdir()
    recipe = tiny_recipe(tiny_model) | {"name": "tiny"}
    recipe["stages"] = {"sft": {"method": "sft"}}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    (place / "rezept für alle.yaml").write_text(text, encoding="utf-8")
    nowhere = tmp_path / "file"
    nowhere.write_text("a folder cannot be made in a file, whoever asks")
    environment = {
        "PATH": str(tmp_path / "no programs"),
        "HOME": str(nowhere / "home"),
        "LC_ALL": "POSIX",
        "PYTHONIOENCODING": "ascii",
        "COLUMNS": "60",
        "PYTHONPATH": str(ROOT),
        "BASHRAC_CACHE": os.environ["BASHRAC_CACHE"],
    }
    core = min(os.sched_getaffinity(0))

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-P", "-m", "pipeline", *arguments],
            cwd=run.place, env=environment, capture_output=True, timeout=500,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip

    run.place = place
    return run


def test_a_run_needs_no_home_no_git_no_utf_8_and_one_core(bare):
    recipe = "rezept für alle.yaml"
    for command in (["check", recipe], ["plan", recipe], ["run", recipe]):
        done = bare(*command)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        done.stdout.decode("utf-8")
    record = json.loads(next(bare.place.glob("runs/steps/train-*/record.json")).read_text())
    assert record["threads"] == [1]
    page = bare("report", recipe, "--format", "html").stdout.decode("utf-8")
    assert "\u00a0" in page and "\\xa0" not in page


def test_a_folder_whose_name_is_no_utf_8_is_a_sentence(bare, tmp_path):
    """Names of an older system, in Latin-1: no record could hold them."""
    place = bare.place
    bare.place = tmp_path / os.fsdecode(b"gr\xf6\xdfe")
    place.rename(bare.place)
    done = bare("run", "rezept für alle.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr.decode()
    assert "gr\\xf6\\xdfe" in done.stderr.decode() and "rename" in done.stderr.decode()


def test_an_error_names_a_file_that_the_terminal_cannot_show(bare):
    done = bare("check", "größe.yaml")
    assert done.returncode == 2 and "Traceback" not in done.stderr.decode()
    assert "there is no recipe file" in done.stderr.decode()
