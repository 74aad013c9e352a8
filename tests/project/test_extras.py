"""What is not installed is a sentence with a way out, in a fresh process that cannot import it."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT

from pipeline.errors import InputError
from pipeline.extras import EXTRAS, missing
from pipeline.recipe.shipped import read_launch
from pipeline.run.upfront import check_launch

WITHOUT = """
import sys
without, *arguments = sys.argv[1:]
sys.modules[without] = None  # import raises, and nothing is found under the name
from pipeline.cli.main import main
raise SystemExit(main(arguments))
"""


@pytest.fixture
def bashrac_without(tmp_path):
    """The command line where a package is not installed."""

    def run(package, *arguments, **env):
        return subprocess.run(
            [sys.executable, "-P", "-c", WITHOUT, package, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_check_names_the_extra_of_a_tracker_that_is_not_there(bashrac_without, tracker):
    done = bashrac_without(tracker, "check", "demo", "--set", f"trainer.report_to=[{tracker}]")
    assert done.returncode == 2
    assert (
        f"trainer.report_to  the package {tracker} is not installed: pip install 'bashrac[report]'"
        in done.stderr
    )


def test_a_folder_that_a_tracker_left_is_not_the_tracker(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert "not installed" in missing("wandb")


def test_a_judge_that_cannot_be_asked_is_found_out_before_anything_runs(
    bashrac_without, recipe_dict, write_recipe, tmp_path
):
    recipe_dict |= {
        "stages": {"base": {"method": "base"}},
        "evaluate": ["tldr"],
        "benchmarks": {"tldr": {"data": {"source": "builtin:posts", "limit": 2}}},
        "judge": "openai:gpt-4.1",
    }
    path = write_recipe(recipe_dict)
    done = bashrac_without("openai", "run", path, OPENAI_API_KEY="sk-of-nobody-at-all")
    assert done.returncode == 2
    assert done.stderr == (
        "error: the judge at https://api.openai.com/v1: the package openai is not installed: "
        "pip install 'bashrac[judge]'\n"
    )
    assert not (tmp_path / "runs/steps").exists()
    recipe = yaml.safe_load(path.read_text()) | {"judge": "reference"}
    local = write_recipe(recipe, "local.yaml")
    assert bashrac_without("openai", "check", local).returncode == 0, "not every judge needs it"


@pytest.mark.parametrize("launch", ["zero2", "zero3"])
def test_a_launch_of_deepspeed_says_that_it_is_not_there(monkeypatch, launch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(InputError, match=r"pip install 'bashrac\[deepspeed\]', or use --launch"):
        check_launch(read_launch(launch), [])


def test_every_extra_that_is_named_installs_the_package_it_is_named_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, extra in EXTRAS.items():
        listed = project["optional-dependencies"][extra]
        assert package in {re.match(r"[\w-]+", line)[0] for line in listed}
