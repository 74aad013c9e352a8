"""The documents: what they point at is there, and the README's map is whole."""

import re
import tomllib

import pytest
import yaml
from conftest import ROOT
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from eval.benchmarks import registry
from pipeline.recipe import schema
from pipeline.recipe.registry import METHODS, method_module

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
    example = {
        "pipeline/stages/rewrite.py",
        "eval/benchmarks/exact.py",
        "tests/stages/test_rewrite.py",
    }
    missing = {name for name in named if not (ROOT / name).is_file()}
    assert missing <= (example if page.name == "extending.md" else set())


@pytest.mark.parametrize(("page", "most"), [("README.md", 160), ("docs/architecture.md", 120)])
def test_a_page_to_read_in_one_sitting_stays_short(page, most):
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= most


def test_every_link_to_a_section_leads_to_a_heading():
    """A renamed heading breaks the links to it without a word from anything else."""
    broken = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for place, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            target = page.parent / place if place else page
            if anchor not in anchors_of(target):
                broken.append(f"{page.name}: {place}#{anchor}")
    assert broken == []


def anchors_of(page):
    """The anchors of a page's headings, as the usual forge makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tree_names_every_folder():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\b([a-z_]+)/", text[text.index("## The tree") :]))
    folders = {"pipeline", "eval", "recipes", "accelerate_configs", "benchmarks", "tests", "docs"}
    for package in ("pipeline", "eval"):
        folders |= {file.parent.name for file in (ROOT / package).glob("*/__init__.py")}
    assert folders <= shown


def test_the_layers_described_are_those_that_are_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    layers = [layer.replace(".", "/").split(" | ") for layer in contract["layers"]]
    checked = [{name for name in layer if (ROOT / name).is_dir()} for layer in layers]
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (`.*?) \|", text.split("## Layers")[1].split("\n## ")[0], re.M)
    described = [set(re.findall(r"`((?:pipeline|eval)/\w+)`", line)) for line in lines]
    assert list(filter(None, described)) == list(filter(None, checked))


def table_rows(heading):
    """The cells of every row of the tables in a section of docs/recipe.md."""
    page = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    tables = re.findall(r"^\|.*\n\| ---.*\n((?:\|.*\n)+)", section, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()]
    return [[cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in lines]


def defaults_of(options, *, without=()):
    """Key -> default as the page writes it, of the keys that a schema has and another has not."""
    inherited = {name for parent in without for name in parent.model_fields}
    found = {}
    for name, field in options.model_fields.items():
        default = field.default
        is_shown = default is not PydanticUndefined and not isinstance(default, BaseModel)
        text = yaml.safe_dump(default, default_flow_style=True) if is_shown else ""
        if name not in inherited:
            found[field.alias or name] = text.removesuffix("\n").removesuffix("\n...")
    return found


@pytest.mark.parametrize(
    ("heading", "options"),
    [
        ("The recipe", schema.Recipe), ("Data", schema.Source), ("Stages", schema.StageOptions),
        ("Generation", schema.Generation), ("Warnings", schema.WarnAt),
        ("Benchmarks", registry.Options), ("Judge", schema.Judge),
    ],
)  # fmt: skip
def test_every_key_of_a_recipe_is_described_with_its_default(heading, options):
    shown = {row[0]: row[1] for row in table_rows(heading) if len(row) == 3}
    shown.pop("variants", None)  # taken out of a file before its keys are read
    assert shown == defaults_of(options)


def test_every_key_of_a_method_is_described_with_its_default():
    shown = {(row[0], row[1]): row[2] for row in table_rows("Stages") if len(row) == 4}
    assert shown == {
        (method, key): default
        for method in METHODS
        for key, default in defaults_of(
            method_module(method).Options, without=[schema.RoundOptions]
        ).items()
    }
    page = " ".join((ROOT / "docs/recipe.md").read_text(encoding="utf-8").split())
    for key, default in defaults_of(schema.RoundOptions, without=[schema.StageOptions]).items():
        assert f"`{key}` ({default}" in page


def test_every_key_of_a_benchmark_is_described_with_its_default():
    shown = {(row[0], row[1]): row[2] for row in table_rows("Benchmarks") if len(row) == 4}
    hub = {("alpaca", "difficulty"): "AlpacaEval's", ("alpaca", "gamed"): "AlpacaEval's"}
    keys = {
        (name, key): default
        for name in registry.BENCHMARKS
        for key, default in defaults_of(registry.benchmark_of(name).options).items()
        if key not in registry.Options.model_fields
    }
    assert shown == keys | hub
