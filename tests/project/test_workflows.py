"""What runs elsewhere (GitHub's workflows, pre-commit) names commands, files and versions that are there."""

import re
import subprocess

import pytest
import yaml
from conftest import ROOT

WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


def load(file):
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    found["on"] = found.pop(True)  # YAML 1.1 reads the key `on` as a boolean
    return found


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_every_make_target_and_file_of_a_workflow_is_there(file):
    workflow = load(file)
    commands = "\n".join(step["run"] for step in steps(workflow) if "run" in step)
    for arguments in re.findall(r"^make (.+)$", commands, re.MULTILINE):
        subprocess.run(
            ["make", "--dry-run", *arguments.split()], cwd=ROOT, check=True, capture_output=True
        )
    named = re.findall(r"\b[\w/]+\.(?:py|txt)\b", file.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_every_action_is_pinned_by_its_major_version_and_every_job_ends(file):
    workflow = load(file)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"])


def test_every_supported_python_is_tested_with_the_pins_and_the_newest_without():
    jobs = load(ROOT / ".github/workflows/test.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    dry = ["make", "--dry-run", "--always-make"]
    pinned, newest = (
        subprocess.run(
            [*dry, *step["run"].split()[1:]], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        for job in ("test", "newest")
        for step in jobs[job]["steps"]
        if "run" in step
    )
    assert "--constraint constraints.txt" in pinned and "constraints.txt" not in newest


def test_only_the_job_that_publishes_may_ask_for_a_token_and_only_for_a_tag():
    release = load(ROOT / ".github/workflows/release.yml")
    assert release["on"] == {"push": {"tags": ["v*"]}}
    allowed = {name for name, job in release["jobs"].items() if "permissions" in job}
    assert allowed == {"publish"} and release["jobs"]["publish"]["needs"] == "build"


@pytest.mark.parametrize(
    ("repository", "package"),
    [("astral-sh/ruff-pre-commit", "ruff"), ("seddonym/import-linter", "import-linter")],
)
def test_pre_commit_runs_the_pinned_versions(repository, package):
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {one["repo"].removeprefix("https://github.com/"): one["rev"] for one in repos}
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"{package}=={revisions[repository].removeprefix('v')}" in pins
