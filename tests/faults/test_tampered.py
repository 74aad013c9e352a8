"""What a step wrote is noticed to have changed before anything is made of it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from pipeline.steps import artifact


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """The folder of a recipe of SFT and BASH that has run."""
    recipe = {
        "name": "tiny",
        "task": "gsm8k",
        "model": tiny_model,
        "data": {role: {"source": "builtin:maths", "limit": 6} for role in ("train", "test")},
        "launch": "cpu",
        "trainer": {"learning_rate": 0.001, "max_steps": 1, "max_length": 256},
        "generation": {"max_new_tokens": 8},
        "stages": {"sft": {"method": "sft"}, "bash": {"method": "bash", "from": "sft"}},
        "evaluate": ["gsm8k"],
    }
    folder = tmp_path_factory.mktemp("made")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    command = [sys.executable, "-m", "pipeline", "run", "recipe.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder


@pytest.fixture
def finished(made, tmp_path):
    """A copy of it for this test; returns (recipe file, (stage, kind) -> folder)."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    folders = {}
    for spec in tmp_path.glob("runs/steps/*/step.json"):
        step = json.loads(spec.read_text())["spec"]
        folders[step["stage"], step["kind"]] = spec.parent
    return tmp_path / "recipe.yaml", folders


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


FAULTS = [
    ("a weight file, one bit changed", "train", "model/model.safetensors", _flip, ("--verify",)),
    ("a weight file, truncated", "train", "model/model.safetensors", _truncate, ()),
    ("a weight file, missing", "train", "model/model.safetensors", lambda path: path.unlink(), ()),
    ("a tokenizer, one bit changed", "train", "model/tokenizer.json", _flip, ()),
    ("a row file, one bit changed", "contexts", "rows.jsonl", _flip, ()),
    ("a row file, truncated", "contexts", "rows.jsonl", _truncate, ()),
    ("a record, a figure changed", "contexts", "record.json",
     lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": 1')), ()),
    ("a record, truncated", "contexts", "record.json", _truncate, ()),
    ("an adapter put beside weights", "train", "model/adapter_config.json",
     lambda path: path.write_text("{}"), ()),
]  # fmt: skip


def test_an_input_that_has_changed_is_named_and_not_used(finished, bashrac, tmp_path, injected):
    """Each fault by itself, in the folder that an unfinished step is to read."""
    path, folders = finished
    reader = {"train": ("bash", "contexts"), "contexts": ("bash", "train")}
    for words, kind, name, damage, options in FAULTS:
        folder = folders["bash" if kind == "contexts" else "sft", kind]
        kept = tmp_path / "kept"
        shutil.copytree(tmp_path / "runs", kept)
        shutil.rmtree(folders[reader[kind]])
        damage(folder / name)
        done = bashrac("run", path, *options)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert str(folder.name) in done.stderr and name in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
        assert not (folders[reader[kind]] / "record.json").exists(), words
        shutil.rmtree(tmp_path / "runs")
        kept.rename(tmp_path / "runs")
    injected(
        "a finished step tampered with",
        "a bit flipped, bytes cut off, a file removed or added: weights, tokenizer, rows, record",
        len(FAULTS),
        "named, and nothing made from it, exit 2 (a bit of a weight file: with --verify)",
    )


def test_a_report_of_a_changed_result_is_refused(finished, bashrac, injected):
    path, folders = finished
    names = [("gsm8k", "result.json"), ("answers", "samples.jsonl")]
    for kind, name in names:
        file = folders["sft", kind] / name
        before = file.read_bytes()
        _flip(file)
        done = bashrac("report", path)
        assert done.returncode == 2 and f"{file.parent.name}/{name}" in done.stderr
        assert "delete" in done.stderr and not done.stdout
        file.write_bytes(before)
    assert bashrac("report", path).returncode == 0
    injected("a result edited by hand", "result.json and samples.jsonl", len(names),
             "no report; the file is named")  # fmt: skip


def test_deleting_the_folder_makes_it_again(finished, bashrac):
    """The way out that the message names works, and leads to the same rows."""
    path, folders = finished
    rows = (folders["bash", "contexts"] / "rows.jsonl").read_bytes()
    shutil.rmtree(folders["bash", "contexts"])
    assert bashrac("run", path).returncode == 0
    assert (folders["bash", "contexts"] / "rows.jsonl").read_bytes() == rows


def test_weights_deleted_for_want_of_space_leave_the_report(finished, bashrac):
    path, folders = finished
    shutil.rmtree(folders["bash", "train"] / "model")
    assert "| bash" in bashrac("report", path).stdout
    assert bashrac("run", path).returncode == 0
    assert bashrac("run", path, "--verify").returncode == 2


def test_leftovers_of_killed_writers_are_no_result(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / ".0.jsonl.123.tmp").write_text("half a")
    (tmp_path / ".model.tmp").mkdir()
    (tmp_path / ".model.tmp" / "model.safetensors").write_text("half a")
    artifact.write_rows(tmp_path / "rows.jsonl", [{"id": 0}])
    artifact.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["rows.jsonl"]
    assert list(artifact.written_files(tmp_path)) == ["rows.jsonl"]
