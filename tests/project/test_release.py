"""`make release` on a repository made of this checkout's files."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import pipeline

CHANGES = """\
# Changelog

## Unreleased

### Added
- What is new.

## 0.0.1 (2020-01-01)

- What was new.
"""


@pytest.fixture
def repository(tmp_path):
    """A clean checkout of main; its `make lint` fails where there is a file named unformatted."""
    folder = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "eval", "recipes", "accelerate_configs", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "CHANGELOG.md").write_text(CHANGES)
    (folder / "Makefile").write_text("lint:\n\ttest ! -e unformatted\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit_all(folder)
    return folder


def git(folder, *arguments):
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "Ann", f"GIT_{who}_EMAIL": "ann@example.org"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit_all(folder):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Everything")


def release(folder, *arguments):
    git(folder, "config", "user.name", "Ann")
    git(folder, "config", "user.email", "ann@example.org")
    return subprocess.run(
        [sys.executable, "tools/release.py", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_release_is_built_dated_committed_and_tagged(repository):
    before = git(repository, "rev-parse", "HEAD")
    done = release(repository, "9.8.0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "git push origin main v9.8.0" in done.stdout
    assert {file.name for file in (repository / "dist").iterdir()} == {
        "bashrac-9.8.0.tar.gz",
        "bashrac-9.8.0-py3-none-any.whl",
    }
    wheel = zipfile.ZipFile(repository / "dist" / "bashrac-9.8.0-py3-none-any.whl")
    assert b'__version__ = "9.8.0"' in wheel.read("pipeline/__init__.py")
    assert b"\nVersion: 9.8.0\n" in wheel.read("bashrac-9.8.0.dist-info/METADATA")
    changes = (repository / "CHANGELOG.md").read_text()
    assert "## Unreleased\n\n## 9.8.0 (2" in changes and ")\n\n### Added\n- What is new." in changes
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "log", "--format=%s", f"{before}..v9.8.0") == "Release 9.8.0"
    assert git(repository, "diff", "--name-only", before).split() == [
        "CHANGELOG.md",
        "pipeline/__init__.py",
    ]
    again = release(repository, "9.9.0")
    assert again.returncode == 1 and "no entry below '## Unreleased'" in again.stderr


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("", "usage: make release VERSION="),
        ("next", "Invalid version"),
        ("v9.8", "write the version as 9.8"),
        ("0.0.1", f"0.0.1 is older than {pipeline.__version__}"),
    ],
)
def test_a_version_that_cannot_be_is_refused(repository, version, said):
    done = release(repository, *version.split())
    assert done.returncode == 1 and said in done.stderr
    assert git(repository, "status", "--porcelain") == ""


def test_a_checkout_that_is_not_ready_is_refused(repository):
    git(repository, "tag", "v9.8.0")
    assert "the tag v9.8.0 is there already" in release(repository, "9.8.0").stderr
    git(repository, "switch", "--quiet", "--create", "mine")
    assert "the branch is mine" in release(repository, "9.9.0").stderr
    (repository / "README.md").write_text("changed")
    assert "the checkout has changes" in release(repository, "9.9.0").stderr
    assert (repository / "CHANGELOG.md").read_text() == CHANGES


def test_what_fails_leaves_the_checkout_as_it_was(repository):
    (repository / "unformatted").touch()
    commit_all(repository)
    done = release(repository, "9.8.0")
    assert done.returncode == 1 and "no release" in done.stderr and "lint" in done.stderr
    assert git(repository, "status", "--porcelain") == "" and git(repository, "tag") == ""
    assert (repository / "CHANGELOG.md").read_text() == CHANGES
