"""The wheel, unpacked away from the checkout, finds its recipes and launch configs."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.mark.launches
def test_an_installed_wheel_brings_its_recipes_and_launch_configs(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("bashrac-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert not (site / "recipes").exists(), "nothing but packages at the top"
    scripts = [one for one in zipfile.ZipFile(wheel).infolist() if one.filename.endswith(".sh")]
    assert len(scripts) == 3 and all(one.external_attr >> 16 & 0o111 for one in scripts)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
        )  # fmt: skip

    where = subprocess.run(
        [sys.executable, "-c", "import pipeline; print(pipeline.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert str(site) in where.stdout
    assert "demo" in run("recipes").stdout
    plan = run("plan", "demo", "--commands")
    assert plan.returncode == 0 and "shipped/accelerate_configs/cpu.yaml" in plan.stdout
    page = run("report", "demo", "--format", "html").stdout
    assert page.startswith("<!DOCTYPE html>") and "not finished" in page
    rows = (
        "from pipeline.data.builtin.rows import SPLITS, builtin_rows; "
        "print([len(builtin_rows(name, limit=2)) for name in SPLITS])"
    )
    drawn = subprocess.run(
        [sys.executable, "-P", "-c", rows], check=True, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert drawn.stdout == "[2, 2, 2]\n", "the words of the built-in rows are in the wheel"
    template = 'from eval.judge.template import load_template; load_template("alpaca_eval_2")'
    subprocess.run(
        [sys.executable, "-P", "-c", template], check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert run("copy", "demo", "mine.yaml").returncode == 0 and (tmp_path / "mine.yaml").exists()
