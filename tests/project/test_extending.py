"""docs/extending.md, done as it says, on a copy of the code where it changes it, and run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def _block_after(words: str) -> str:
    """The first code block after some words of the page."""
    after = PAGE[PAGE.index(words) :]
    found = re.search(r"```\w+\n(.*?)```", after, re.DOTALL)
    assert found
    return found[1]


def _add(file: Path, last: str, lines: str) -> None:
    """Put lines of the page after what they are to follow."""
    text = file.read_text(encoding="utf-8")
    assert text.count(last) == 1
    file.write_text(text.replace(last, last + lines), encoding="utf-8")


@pytest.fixture
def extended(tmp_path):
    for name in ("pipeline", "eval", "recipes", "accelerate_configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pipeline/stages/rewrite.py", "eval/benchmarks/exact.py"):
        (tmp_path / file).write_text(_block_after(f"`{file}`:"), encoding="utf-8")
    _add(
        tmp_path / "pipeline" / "recipe" / "registry.py",
        '    "dpo": Method("pipeline.stages.dpo", "trl.DPOConfig"),\n',
        _block_after("`pipeline/recipe/registry.py`, after"),
    )
    _add(
        tmp_path / "eval" / "benchmarks" / "registry.py",
        '    "rouge": "eval.benchmarks.rouge",\n',
        _block_after("`eval/benchmarks/registry.py`, after"),
    )
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "extended.yaml").write_text(
        _block_after("## A recipe that uses the method and the benchmark")
    )
    return folder


def test_the_page_adds_a_method_and_a_benchmark(extended, tiny_model):
    sets = [
        f"model={tiny_model}", "lora=null", "data.train.limit=24", "data.test.limit=4",
        "generation={max_new_tokens: 64, dtype: float32}", "trainer.bf16=false",
        "batch_size=12", "micro_batch_size=4",
        "stages.rewrite.temperature=5.0",  # so that a random model ends some of its answers
    ]  # fmt: skip

    def bashrac(command, *more):
        words = [word for one in (*sets, *more) for word in ("--set", one)]
        return subprocess.run(
            [sys.executable, "-P", "-m", "pipeline", command, "extended.yaml", *words],
            cwd=extended, env={**os.environ, "PYTHONPATH": str(extended.parent)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    ran = bashrac("run")
    assert ran.returncode == 0, ran.stderr
    (file,) = extended.glob("runs/steps/rewritten-*/rows.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    ended = sum(any(label != -100 for label in row["labels"]) for row in rows)
    assert len(rows) == 24 and ended > 0
    report = (extended / "runs" / "extended" / "report.md").read_text(encoding="utf-8")
    assert "| exact" in report and "| ended by the model |" in report
    assert f"{24 - ended} of 24 self-generated rows have no label" in report
    wrong = bashrac("check", "stages.rewrite.lamda=2")
    assert wrong.returncode == 2 and "did you mean lambda" in wrong.stderr


def test_the_page_adds_a_task_as_a_file(bashrac, tiny_model, tmp_path):
    """SFT, RAC and both benchmarks; a changed file runs again, an untouched one does not."""
    for file in ("my_task.py", "tickets.jsonl", "tickets.yaml"):
        (tmp_path / file).write_text(_block_after(f"`{file}`"), encoding="utf-8")
    sets = ["--set", f"model={tiny_model}", "--set", "generation.max_new_tokens=8"]
    ran = bashrac("run", "tickets.yaml", *sets)
    assert ran.returncode == 0, ran.stderr
    table = (tmp_path / "runs" / "tickets" / "report.csv").read_text(encoding="utf-8")
    for row in (
        "accuracy,sft,sft,accuracy,",
        "accuracy,rac,rac,accuracy,",
        "rouge,rac,rac,ROUGE-L,",
    ):
        assert f"\n{row}" in table
    (file,) = tmp_path.glob("runs/steps/corrections-*/step.json")
    assert "The ticket below is for this queue:" in file.read_text(encoding="utf-8")
    assert "11 done, 0 to run" in bashrac("plan", "tickets.yaml", *sets).stdout
    (tmp_path / "my_task.py").rename(tmp_path / "renamed.py")
    renamed = bashrac("plan", "tickets.yaml", *sets, "--set", "task=renamed.py")
    assert "11 done, 0 to run" in renamed.stdout
    with (tmp_path / "renamed.py").open("a", encoding="utf-8") as file:
        file.write("# Another file now.\n")
    changed = bashrac("plan", "tickets.yaml", *sets, "--set", "task=renamed.py")
    assert "0 done, 11 to run" in changed.stdout
    assert "since the last run: the content of the task's file\n" in changed.stdout
