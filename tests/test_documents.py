"""The documents: what they point at is there, and the README's map is whole."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    linked = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [place for place in linked if not (page.parent / place).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(r"\b(?:pipeline|eval|tests|benchmarks|docs)/[\w/.-]+\.(?:py|md)\b(?!\.)", text)
    )
    example = {"pipeline/stages/rewrite.py", "eval/exact.py", "tests/test_stage_rewrite.py"}
    missing = {name for name in named if not (ROOT / name).is_file()}
    assert missing <= (example if page.name == "extending.md" else set())


def test_the_map_names_every_module():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"[\w*]+\.(?:py|jinja)", text[text.index("## File map") :]))
    packages = ("pipeline", "eval", "benchmarks")
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    unnamed = {
        path.name
        for path in modules
        if not path.name.startswith("__") and not any(fnmatch(path.name, one) for one in shown)
    }
    assert unnamed == set()
