"""`pipeline` and `eval` are common names: a warning where another file hides one of ours."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.launches


def run_python(*arguments, cwd, path):
    """Run Python in a folder, with folders to import from; returns what it printed as errors."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )  # fmt: skip
    return done.stderr


@pytest.mark.parametrize("file", ["eval.py", "eval/__init__.py"])
def test_an_eval_that_hides_ours_is_named(tmp_path, file):
    theirs = tmp_path / file
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("raise SystemExit('it was imported')")
    said = run_python("-c", "import pipeline", cwd=tmp_path, path=[ROOT])
    assert f"`import eval` finds {theirs.resolve()}, not bashrac's package {ROOT / 'eval'}" in said
    assert "rename" in said


@pytest.mark.parametrize("file", ["pipeline.py", "pipeline/__init__.py"])
def test_a_pipeline_that_hides_ours_is_named(tmp_path, file):
    theirs = tmp_path / file
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("raise SystemExit('it was imported')")
    said = run_python("-c", "from eval.gsm8k import grade", cwd=tmp_path, path=[ROOT])
    assert f"`import pipeline` finds {theirs.resolve()}, not bashrac's" in said


def test_an_eval_that_is_loaded_already_is_named(tmp_path):
    (tmp_path / "eval.py").touch()
    code = "import sys, eval; sys.path.append(sys.path.pop(0)); import pipeline"
    said = run_python("-c", code, cwd=tmp_path, path=[ROOT])
    assert f"finds {tmp_path.resolve() / 'eval.py'}" in said


def test_python_m_pipeline_warns_only_where_ours_stays_hidden(tmp_path):
    """It puts the user's folder last; what comes first on PYTHONPATH stays first."""
    (tmp_path / "eval.py").write_text("raise SystemExit('it was imported')")
    command = ["-m", "pipeline", "--version"]
    assert run_python(*command, cwd=tmp_path, path=[ROOT]) == ""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "`import eval` finds" in run_python(*command, cwd=elsewhere, path=[tmp_path, ROOT])


def test_nothing_is_said_of_a_folder_of_results_named_eval(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "pipeline").mkdir()
    for code in ("import pipeline, eval", "import eval.graders", "import pipeline.errors"):
        assert run_python("-c", code, cwd=tmp_path, path=[ROOT]) == ""


def test_looking_for_the_other_package_imports_nothing(tmp_path):
    code = (
        "import sys; before = set(sys.modules); import pipeline, eval; "
        "print(*sorted(sys.modules.keys() - before), file=sys.stderr)"
    )
    loaded = run_python("-c", code, cwd=tmp_path, path=[ROOT]).split()
    packages = {name.split(".")[0] for name in loaded}
    assert {"pipeline", "eval"} <= packages <= {"pipeline", "eval", "warnings", "importlib"}
