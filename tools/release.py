"""Makes a release of what is checked out: `make release VERSION=0.2.0`.

Sets the version, dates the changelog, lints, builds into an emptied dist/, commits and tags; pushes
nothing. A step that fails leaves the files as they were.
"""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
VERSION_FILE = ROOT / "pipeline" / "__init__.py"
CHANGELOG = ROOT / "CHANGELOG.md"
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_UNRELEASED = re.compile(r"^## Unreleased\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def main(arguments: list[str]) -> str | int:
    """Make the release named on the command line; returns 0, or what keeps it from being made."""
    if len(arguments) != 1:
        return "usage: make release VERSION=0.2.0"
    (version,) = arguments
    if problem := _version_problem(version) or _tree_problem(version):
        return f"no release: {problem}"
    text = CHANGELOG.read_text(encoding="utf-8")
    found = _UNRELEASED.search(text)
    if found is None or not re.search(r"^[-*] ", found[1], re.MULTILINE):
        return "no release: CHANGELOG.md has no entry below '## Unreleased': say what is new there"
    heading = f"## Unreleased\n\n## {version} ({datetime.date.today().isoformat()})\n"
    CHANGELOG.write_text(text.replace("## Unreleased\n", heading, 1), encoding="utf-8")
    code = VERSION_FILE.read_text(encoding="utf-8")
    VERSION_FILE.write_text(_VERSION.sub(f'__version__ = "{version}"', code), encoding="utf-8")
    try:
        _run("make", "lint")
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        _run(sys.executable, "-m", "hatchling", "build")
        _run("git", "commit", "--all", "--message", f"Release {version}")
    except (subprocess.CalledProcessError, KeyboardInterrupt) as error:
        _run("git", "checkout", "HEAD", "--", str(CHANGELOG), str(VERSION_FILE))
        return f"no release: {error}"
    _run("git", "tag", "--annotate", f"v{version}", "--message", f"bashrac {version}")
    print(f"dist/ holds {version}; to publish it: git push origin main v{version}")
    return 0


def _version_problem(version: str) -> str | None:
    """What is wrong with a version, if anything."""
    match = _VERSION.search(VERSION_FILE.read_text(encoding="utf-8"))
    if match is None:
        return f"{VERSION_FILE} holds no line __version__ = "
    try:
        new = Version(version)
    except InvalidVersion as error:
        return str(error)
    if str(new) != version:
        return f"write the version as {new}"
    # The first release may have the version that stands there already.
    if new < Version(match[1]):
        return (
            f"{version} is older than {match[1]}, the version in {VERSION_FILE.relative_to(ROOT)}"
        )
    return None


def _tree_problem(version: str) -> str | None:
    """What is wrong with the checkout, if anything."""
    if changed := _git("status", "--porcelain"):
        return f"the checkout has changes; commit them or put them away:\n{changed}"
    if (branch := _git("branch", "--show-current")) != "main":
        return f"the branch is {branch or 'none'}: git switch main"
    if _git("tag", "--list", f"v{version}"):
        return f"the tag v{version} is there already: choose a newer version"
    return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.rstrip("\n")


def _run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
