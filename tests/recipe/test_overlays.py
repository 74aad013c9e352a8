"""One file, several recipes: overlays, what goes over what, and how problems are named."""

import pytest
import yaml
from conftest import problems_of

from pipeline.errors import InputError, RecipeError
from pipeline.plan.load import load_recipe, variants_of
from pipeline.recipe.overlays import merged, take_variant

VARIANTS = {
    "small": {"batch_size": 2, "lora": {"r": 2, "target_modules": "all-linear"}},
    "large": {"batch_size": 8, "trainer": {"learning_rate": 0.5}},
}


@pytest.fixture
def with_variants(recipe_dict, write_recipe):
    return write_recipe({**recipe_dict, "variants": VARIANTS})


def test_mappings_are_merged_key_by_key_and_all_else_is_replaced():
    below = {"a": {"b": 1, "c": [1, 2], "d": {"e": 3}}, "f": "text", "g": {"h": 1}}
    above = {"a": {"c": [3], "d": {"i": 4}}, "f": None, "g": 5, "j": {"k": 6}}
    assert merged(below, above) == {
        "a": {"b": 1, "c": [3], "d": {"e": 3, "i": 4}}, "f": None, "g": 5, "j": {"k": 6},
    }  # fmt: skip
    assert below == {"a": {"b": 1, "c": [1, 2], "d": {"e": 3}}, "f": "text", "g": {"h": 1}}


def test_a_source_in_plain_text_takes_a_limit_as_it_does_from_set():
    below = {"data": {"train": "rows.jsonl"}, "judge": "openai:m", "model": "m"}
    above = {"data": {"train": {"limit": 3}}, "judge": {"orders": "one"}, "model": "n"}
    assert merged(below, above) == {
        "data": {"train": {"source": "rows.jsonl", "limit": 3}},
        "judge": {"engine": "openai", "model": "m", "orders": "one"},
        "model": "n",
    }


def test_the_file_then_the_variant_then_set(with_variants):
    recipe = load_recipe(with_variants, ["trainer.learning_rate=0.25"], "large")
    assert recipe.batch_size == 8, "of the variant"
    assert recipe.trainer["learning_rate"] == 0.25, "of --set"
    assert recipe.trainer["max_steps"] == 2, "of the file"
    assert recipe.name == "tiny-large"
    assert load_recipe(with_variants, ["name=mine"], "large").name == "mine"


def test_the_first_variant_is_the_default(with_variants):
    assert load_recipe(with_variants) == load_recipe(with_variants, variant="small")
    assert variants_of(with_variants) == ["small", "large"]


def test_null_in_a_variant_takes_a_key_back(recipe_dict, write_recipe):
    recipe_dict |= {"lora": {"r": 2}, "variants": {"full": {"lora": None}}}
    assert load_recipe(write_recipe(recipe_dict)).lora is None


def test_what_an_alias_shares_is_set_in_one_place_only(recipe_dict, tmp_path):
    for stage in ("sft-dpo", "bash-dpo"):
        recipe_dict["stages"][stage]["trainer"] = {"beta": 0.1}
    shared = recipe_dict["stages"]["sft-dpo"]["trainer"]
    recipe_dict["stages"]["bash-dpo"]["trainer"] = shared  # yaml writes an alias
    path = tmp_path / "shared.yaml"
    path.write_text(yaml.safe_dump(recipe_dict, sort_keys=False))
    assert "*id001" in path.read_text()
    stages = load_recipe(path, ["stages.sft-dpo.trainer.beta=0.2"]).stages
    assert stages["sft-dpo"].trainer == {"beta": 0.2}
    assert stages["bash-dpo"].trainer == {"beta": 0.1}


def test_a_problem_is_listed_under_the_variant_that_has_it(recipe_dict, write_recipe):
    path = write_recipe({**recipe_dict, "variants": {"a": {}, "b": {"lora": {"rank": 2}}}})
    load_recipe(path)
    with pytest.raises(RecipeError, match=r"recipe\.yaml \(variant b\): 1 problem\n  lora\.rank"):
        load_recipe(path, variant="b")


def test_a_variant_that_is_not_there_is_a_sentence(with_variants, recipe_dict, write_recipe):
    with pytest.raises(
        InputError, match=r"no variant 'larg'; did you mean large\?; variants: small"
    ):
        load_recipe(with_variants, variant="larg")
    plain = write_recipe(recipe_dict, "plain.yaml")
    with pytest.raises(InputError, match="has no variants; leave out --variant large"):
        load_recipe(plain, variant="large")
    with pytest.raises(InputError, match="--set is applied after the variant"):
        load_recipe(with_variants, ["variants.small.batch_size=4"])


@pytest.mark.parametrize(
    ("variants", "key", "message"),
    [
        ({}, "variants", "a mapping of names"),
        (["lora"], "variants", "a mapping of names"),
        (None, "variants", "a mapping of names"),
        ({"a b": {}}, "variants.a b", "letters, digits"),
        ({"a": None}, "variants.a", "{} for none"),
        ({"a": {"name": "b"}}, "variants.a.name", "take it out"),
        ({"a": {"variants": {}}}, "variants.a.variants", "take it out"),
        ({"a": {"vriants": {}}}, "vriants", "not a key bashrac knows"),
    ],
)
def test_variants_of_another_shape_are_problems(recipe_dict, write_recipe, variants, key, message):
    assert message in problems_of(write_recipe({**recipe_dict, "variants": variants}))[key]


def test_taking_a_variant_leaves_the_recipe_as_it_was_read(recipe_dict):
    raw = {**recipe_dict, "variants": VARIANTS}
    taken, chosen = take_variant(raw, None, name="x")
    taken["stages"]["sft"]["trainer"] = taken["lora"]["r"] = 1
    assert chosen == "small" and "trainer" not in raw["stages"]["sft"]
    assert VARIANTS["small"]["lora"]["r"] == 2


def test_commands_take_a_variant_and_check_looks_at_each(with_variants, bashrac):
    checked = bashrac("check", with_variants)
    assert checked.returncode == 0, checked.stderr
    assert [line.split(": ")[0] for line in checked.stdout.splitlines()] == [
        f"{with_variants} (variant small)", f"{with_variants} (variant large)",
    ]  # fmt: skip
    one = bashrac("check", with_variants, "--variant", "large", "--set", "trainer.lr=1")
    assert one.returncode == 2 and "(variant large): 1 problem" in one.stderr and not one.stdout
    report = bashrac("report", with_variants, "--variant", "large")
    assert report.stdout.startswith("# tiny-large\n"), report.stderr
    failed = bashrac("run", with_variants, "--variant", "large", "--set", "trainer.max_length=1")
    assert f"retry: bashrac run {with_variants} --variant large --set" in failed.stderr
    copied = bashrac("copy", with_variants, "mine.yaml")
    assert "variants, the first by default: --variant small, large" in copied.stdout
