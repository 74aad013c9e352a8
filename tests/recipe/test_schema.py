import pytest
import yaml
from conftest import ROOT, problems_of

from pipeline.errors import InputError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan


def test_the_demo_passes_the_check():
    recipe = load_recipe("demo")
    assert recipe.name == "demo"
    assert make_plan(recipe).steps


def test_all_problems_come_at_once_each_with_a_way_out(recipe_dict, write_recipe):
    recipe_dict["stages"]["sft"]["trainer"] = {"learning_rte": 0.1}
    recipe_dict["stages"]["bash-dpo"]["from"] = "bsh"
    recipe_dict["trainer"]["learning_rate"] = "5e-7"
    recipe_dict["data"]["train"] = "no/such.jsonl"
    recipe_dict["evaluate"] = ["gsm8"]
    recipe_dict["launch"] = "cpuu"
    recipe_dict["lora"] = {"rank": 8}
    recipe_dict["published"] = {"sfft": {"gsm8k": 1.0}}
    found = problems_of(write_recipe(recipe_dict))
    assert "did you mean learning_rate?" in found["stages.sft.trainer.learning_rte"]
    assert 'no stage "bsh" above it; did you mean bash?' in found["stages.bash-dpo.from"]
    assert found["trainer.learning_rate"] == "YAML takes '5e-7' for text; write 5.0e-7"
    assert "no file or folder no/such.jsonl" in found["data.train.source"]
    assert "did you mean gsm8k?" in found["evaluate"]
    assert "did you mean cpu?" in found["launch"]
    assert "not a field of peft.LoraConfig" in found["lora.rank"]
    assert "did you mean sft?" in found["published.sfft"]
    assert len(found) == 8


def test_a_file_of_other_rows_is_named_before_anything_runs(recipe_dict, write_recipe, tmp_path):
    path = tmp_path / "posts.jsonl"
    path.write_text('\n{"subreddit": "a", "title": "b", "post": "c", "summary": "d"}\n')
    for role in ("train", "test", "preferences"):
        recipe_dict["data"][role] = {"source": str(path)}
    found = problems_of(write_recipe(recipe_dict))
    assert found["data.train.source"] == (
        f"{path}, first row: field 'question' is missing; the row has subreddit, title, post, summary"
    )
    assert "field 'prompt' is missing" in found["data.preferences.source"]
    assert set(found) == {f"data.{role}.source" for role in ("train", "test", "preferences")}


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"sedes": [1]}, "sedes", "did you mean seeds?"),
        ({"learning_rate": 1.0e-4}, "learning_rate", "belongs below trainer: trainer.learning_rate"),
        ({"r": 8}, "r", "belongs below lora: lora.r"),
        ({"seed": 8}, "seed", "is set by bashrac: use seeds"),
        ({"stages": {"a": {"method": "dpo", "beta": 1}}}, "stages.a.beta", "below trainer: stages.a.trainer.beta"),
        ({"stages": {"a": {"method": "sft", "beta": 1}}}, "stages.a.beta", "not a key bashrac knows"),
        ({"stages": {"a": {"method": "sft", "packing": True}}}, "stages.a.packing", "is set by bashrac"),
        ({"sweep": {"stages.sft.max_steps": [1, 2]}}, "sweep.stages.sft.max_steps", "stages.sft.trainer.max_steps"),
        ({"stages": {"b": {"method": "sft", "from": "a"}, "a": {"method": "sft"}}}, "stages.b.from", "move it above b"),
        ({"trainer": {"loss_type": ["ipo"]}}, "trainer.loss_type", "differ in it: write it below stages.NAME"),
        ({"evaluate": "gsm8k"}, "evaluate", "must be a list, such as ['gsm8k']"),
        ({"trainer": {"bf16": True, "fp16": True}}, "trainer.fp16", "keep one"),
        ({"trainer": {"bf16": True}, "stages": {"a": {"method": "sft", "trainer": {"fp16": True}}}},
         "stages.a.trainer.fp16", "keep one"),
        ({"trainer": {"num_train_epochs": 0}}, "trainer.num_train_epochs", "above 0"),
        ({"stages": {"a": {"method": "bash", "excluded_ids": [-1]}}}, "stages.a.excluded_ids.0", "or equal to 0"),
        ({"seeds": None}, "seeds", "null: must be a list"),
        ({"benchmarks": {"gsm8k": 3}}, "benchmarks.gsm8k", "3: must be a mapping of keys"),
        ({"data": {"train": "builtin:posts", "test": "builtin:maths"}}, "data.train.source", "take builtin:maths"),
        ({"data": {"train": __file__, "test": "builtin:maths"}}, "data.train.source", "is not a .jsonl, .json"),
        ({"batch_size": "4"}, "batch_size", "without quotes, 4"),
        ({"batch_size": "many"}, "batch_size", "must be a whole number"),
        ({"system": 0.5}, "system", "0.5: must be text: write it in quotes"),
        ({"batch_size": 0}, "batch_size", "greater than or equal to 1"),
        ({"seeds": []}, "seeds", "at least 1"),
        ({"seeds": [1, 1]}, "seeds", "twice"),
        ({"name": "../up"}, "name", "letters, digits"),
        ({"model": "./nowhere"}, "model", "no folder ./nowhere"),
        ({"task": "poetry"}, "task", "gsm8k"),
        ({"data": {"train": "builtin:math", "test": "builtin:maths"}}, "data.train.source", "builtin:maths"),
        ({"data": {"train": {"source": "builtin:maths", "limt": 3}}}, "data.train.limt", "did you mean limit?"),
        ({"data": {"train": "builtin:maths", "test": None}}, "data.test", "needs held-out rows"),
        ({"stages": {}}, "stages", "at least 1"),
        ({"stages": {"a": {"method": "bsah"}}}, "stages.a.method", "did you mean bash?"),
        ({"stages": {"a": {}}}, "stages.a", "needs a method"),
        ({"stages": {"a b": {"method": "sft"}}}, "stages.a b", "letters, digits"),
        ({"stages": {"a": {"method": "sft", "from": "a"}}}, "stages.a.from", "it is the first stage"),
        ({"stages": {"a": {"method": "bash", "beta": 2}}}, "stages.a.beta", "less than or equal to 1"),
        ({"stages": {"a": {"method": "bash", "beta": {"schedule": "linear"}}}}, "stages.a.beta", "end and start"),
        ({"stages": {"a": {"method": "bash", "bta": 0.2}}}, "stages.a.bta", "did you mean beta?"),
        ({"trainer": {"beta": 0.1}, "stages": {"a": {"method": "sft"}}}, "trainer.beta", "not a field of trl.SFTConfig"),
        ({"trainer": {"output_dir": "x"}}, "trainer.output_dir", "is set by bashrac"),
        ({"stages": {"a": {"method": ["sft"]}}}, "stages.a.method", "no method ['sft']"),
        ({"seeds": [-1]}, "seeds.0", "greater than or equal to 0"),
        ({"trainer": {"max_grad_norm": float("inf")}}, "trainer.max_grad_norm", "not a finite number"),
        ({"published": {"sft": {"gsm8": 1.0}}}, "published.sft.gsm8", "did you mean gsm8k?"),
        ({"baseline": "sfft"}, "baseline", "did you mean sft?"),
        ({"trainer": {"loss_type": "nll"}}, "trainer.loss_type", "expected list"),
        ({"trainer": {"packing": True}}, "trainer.packing", "is set by bashrac"),
        ({"stages": {"a": {"method": "dpo", "samples": 3}}}, "stages.a.samples", "pairs: self"),
        ({"evaluate": ["gsm8k", "gsm8k"]}, "evaluate", "gsm8k is given twice"),
        ({"evaluate": ["alpaca"]}, "judge", "openai:MODEL"),
        ({"evaluate": ["rouge"], "data": {"train": "builtin:maths"}}, "data.test", "rouge needs held-out rows"),
        ({"data": {"test": "builtin:maths"}}, "data.train", "is missing"),
        ({"benchmarks": {"gsm": {}}}, "benchmarks.gsm", "did you mean gsm8k?"),
        ({"benchmarks": {"alpaca": {}}}, "benchmarks.alpaca", "alpaca is not in evaluate"),
        ({"benchmarks": {"gsm8k": {"few_shots": 5}}}, "benchmarks.gsm8k.few_shots", "did you mean few_shot?"),
        ({"benchmarks": {"gsm8k": {"data": "no.jsonl"}}}, "benchmarks.gsm8k.data.source", "no file or folder"),
        ({"benchmarks": {"gsm8k": {"data": {"source": "builtin:maths", "split": "tst"}}}}, "benchmarks.gsm8k.data.split", "no split"),
        ({"judge": "gpt-4"}, "judge", "should be openai, local or reference"),
        ({"judge": "openai"}, "judge", "model is missing"),
        ({"judge": {"engine": "openai", "model": "m", "base_url": "http://u:p@h/v1"}}, "judge", "not contain a user, password"),
        ({"judge": {"engine": "local", "model": "m", "reads": "text"}}, "judge", "reads labels"),
        ({"judge": "reference:m"}, "judge", "takes no model"),
        ({"evaluate": ["tldr"], "judge": "openai:m", "benchmarks": {"tldr": {"template": "tldr_dpo_concis"}}}, "benchmarks.tldr.template", "tldr_dpo_concise"),
        ({"data": {"train": {"source": "builtin:maths", "file": "x"}}}, "data.train.file", "names a file inside a hub"),
        ({"stages": {"a": {"method": "base", "trainer": {}}}}, "stages.a.trainer", "remove this key"),
        ({"stages": {"a": {"method": "base"}, "b": {"method": "sft", "from": "a"}}}, "stages.b.from", "remove it"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_problem_is_named_by_its_key(recipe_dict, write_recipe, change, key, message):
    found = problems_of(write_recipe(recipe_dict | change))
    assert message in found[key], found


def test_a_shared_trainer_option_of_dpo_reaches_only_dpo_stages(recipe_dict, write_recipe):
    recipe_dict["trainer"]["beta"] = 0.3
    recipe = load_recipe(write_recipe(recipe_dict))
    assert "beta" not in recipe.trainer_for(recipe.stages["sft"])
    assert recipe.trainer_for(recipe.stages["sft-dpo"])["beta"] == 0.3


def test_a_stage_may_have_a_batch_of_its_own(recipe_dict, write_recipe):
    recipe_dict["stages"]["sft-dpo"]["batch_size"] = 2
    plan = make_plan(load_recipe(write_recipe(recipe_dict)))
    sizes = {name: plan.models[name, 0].base.options["batch_size"] for name in plan.recipe.stages}
    assert sizes == {"sft": 4, "bash": 4, "sft-dpo": 2, "bash-dpo": 4}
    recipe_dict |= {"launch": "ddp", "batch_size": 8}
    found = problems_of(write_recipe(recipe_dict))
    assert "2 is not a multiple of the 8 processes" in found.pop("stages.sft-dpo.batch_size")
    assert not found


def test_training_all_weights_from_an_adapter_needs_merge_adapter(recipe_dict, write_recipe):
    recipe_dict["lora"] = {"r": 4}
    recipe_dict["stages"]["sft-dpo"]["lora"] = None
    found = problems_of(write_recipe(recipe_dict))
    assert "merge_adapter: true" in found["stages.sft-dpo.lora"]
    recipe_dict["stages"]["sft-dpo"]["merge_adapter"] = True
    load_recipe(write_recipe(recipe_dict))


def test_dpo_without_preferences_says_what_to_give(recipe_dict, write_recipe):
    del recipe_dict["data"]["preferences"]
    assert "data.preferences" in problems_of(write_recipe(recipe_dict))["stages.sft-dpo"]


def test_a_key_given_twice_is_refused_where_yaml_would_take_the_last(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nbatch_size: 4\nbatch_size: 8\n")
    with pytest.raises(InputError, match="line 3: 'batch_size' is given twice"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "a recipe is a mapping"),
        (b"", "a recipe is a mapping"),
        (b"name: [\n", "not valid YAML"),
        (b'name: "x\ntask: chat\n', r"line 3, column 1: .* \(line 1\), found unexpected end"),
        (b"name: \xff\xfe\n", "not UTF-8"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"? [a, b]\n: 1\n", "plain text"),
    ],
)
def test_a_file_that_is_no_recipe_is_a_sentence(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_recipe(path)


def test_a_missing_recipe_names_the_shipped_ones():
    with pytest.raises(InputError, match=r"shipped recipes: .*demo"):
        load_recipe("demoo")


def test_overrides_reach_any_key_and_are_checked_like_the_file(recipe_dict, write_recipe):
    path = write_recipe(recipe_dict)
    recipe = load_recipe(
        path,
        [
            "data.train.limit=64",
            "stages.bash.beta=0.4",
            "seeds=[0, 1]",
            "trainer.learning_rate=1.0e-5",
        ],
    )
    assert recipe.data.train.limit == 64
    assert recipe.stages["bash"].beta == 0.4
    assert recipe.seeds == [0, 1]
    assert recipe.trainer["learning_rate"] == 1.0e-5
    assert (
        "write 1.0e-5" in problems_of(path, "trainer.learning_rate=1e-5")["trainer.learning_rate"]
    )
    assert "did you mean limit?" in problems_of(path, "data.train.limits=64")["data.train.limits"]
    with pytest.raises(InputError, match="key=value"):
        load_recipe(path, ["batch_size"])


def test_an_override_may_go_below_a_source_given_as_plain_text(recipe_dict, write_recipe):
    recipe_dict["data"]["train"] = "builtin:maths"
    recipe = load_recipe(write_recipe(recipe_dict), ["data.train.limit=3"])
    assert (recipe.data.train.source, recipe.data.train.limit) == ("builtin:maths", 3)


def test_a_launch_config_may_not_change_results(recipe_dict, write_recipe, tmp_path):
    config = {
        "distributed_type": "NO",
        "num_processes": 1,
        "mixed_precision": "bf16",
        "use_cpu": True,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    found = problems_of(write_recipe(recipe_dict | {"launch": str(tmp_path / "mine.yaml")}))
    assert "precision: bfloat16" in found["launch"]


def test_a_recipe_is_frozen(recipe_dict, write_recipe):
    recipe = load_recipe(write_recipe(recipe_dict))
    with pytest.raises(ValueError, match="frozen"):
        recipe.batch_size = 8


def test_the_readme_example_is_a_valid_recipe(tmp_path):
    """The README's whole recipe, with the rows of its own example as data files."""

    text = (ROOT / "README.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```yaml")[1:]]
    example = next(line for line in text.splitlines() if line.startswith('{"question"'))
    raw = next(yaml.safe_load(block) for block in blocks if "stages:" in block)
    for role in ("train", "test"):
        file = tmp_path / f"{role}.jsonl"
        file.write_text(example)
        raw["data"][role]["source"] = str(file)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    assert load_recipe(path).stages


def test_a_misspelt_key_hides_no_other_problem(recipe_dict, write_recipe):
    recipe_dict["sedes"] = [0]
    recipe_dict["data"]["train"] = {"source": "nothere.jsonl"}
    recipe_dict["stages"]["bash"]["trainer"] = {"learning_rte": 1.0e-4}
    found = problems_of(write_recipe(recipe_dict))
    assert found.keys() == {"sedes", "data.train.source", "stages.bash.trainer.learning_rte"}


def test_a_wrong_value_at_the_top_hides_no_other_problem(recipe_dict, write_recipe):
    """All else is looked at as though the recipe did not have that key."""
    recipe_dict |= {"seeds": 3, "batch_size": "4", "judge": "opena"}
    recipe_dict["data"]["train"] = {"source": "nothere.jsonl"}
    recipe_dict["stages"]["bash"] |= {"from": "sfft", "round": 2}
    recipe_dict["evaluate"] = ["gsm8k", "tldr"]
    assert set(problems_of(write_recipe(recipe_dict))) == {
        "seeds", "batch_size", "judge", "data.train.source", "stages.bash.from", "stages.bash.round",
    }  # fmt: skip


def test_a_wrong_value_at_the_top_makes_no_problem_that_it_is_the_cause_of(
    recipe_dict, write_recipe
):
    recipe_dict |= {"evaluate": "gsm8k", "benchmarks": {"gsm8k": {"shots": None}}, "lora": 3}
    recipe_dict |= {"quantize": "nf4", "dta": recipe_dict.pop("data")}
    assert set(problems_of(write_recipe(recipe_dict))) == {"evaluate", "lora", "dta"}


def test_a_skip_that_leaves_nothing_is_found_before_anything_runs(recipe_dict, write_recipe):
    recipe_dict["data"] |= {
        "train": {"source": "builtin:maths", "skip": 4000},
        "test": {"source": "builtin:maths", "split": "train", "skip": 3000, "limit": 400},
    }
    assert problems_of(write_recipe(recipe_dict)) == {
        "data.train.skip": "leaves none of the 4000 rows of builtin:maths, train; lower it"
    }


def test_the_first_row_that_is_read_is_the_one_that_is_looked_at(
    recipe_dict, write_recipe, tmp_path
):
    good = '{"question": "q", "answer": "#### 1"}\n'
    (tmp_path / "rows.jsonl").write_text('{"question": "q"}\n' + good + '{"answer": "a"}\n')
    recipe_dict["data"]["train"] = {"source": str(tmp_path / "rows.jsonl"), "skip": 1}
    path = write_recipe(recipe_dict)
    load_recipe(path)
    assert ":3: field 'question'" in problems_of(path, "data.train.skip=2")["data.train.source"]
    assert (
        "it has no rows after skip 3" in problems_of(path, "data.train.skip=3")["data.train.source"]
    )


def test_a_misspelt_key_of_a_stage_hides_no_other_problem_of_the_stage(recipe_dict, write_recipe):
    """Its `from`, options of TRL and own rules are looked at as though the key were spelt right."""
    recipe_dict["stages"]["bash"] = {
        "method": "bash", "from": "sfft", "round": 2, "trainer": {"learning_rte": 1.0},
        "beta": {"schedule": "linear", "start": 0.1},
    }  # fmt: skip
    found = problems_of(write_recipe(recipe_dict))
    assert set(found) == {
        "stages.bash.round", "stages.bash.from", "stages.bash.trainer.learning_rte",
        "stages.bash.beta",
    }  # fmt: skip
    assert found["stages.bash.from"] == 'no stage "sfft" above it; did you mean sft?; stages: sft'


def test_a_misspelt_key_of_a_benchmark_hides_no_other_problem_of_the_benchmark(
    recipe_dict, write_recipe
):
    recipe_dict["benchmarks"] = {"gsm8k": {"data": "no/such.jsonl", "max_tokens": 8}}
    found = problems_of(write_recipe(recipe_dict))
    assert set(found) == {"benchmarks.gsm8k.data.source", "benchmarks.gsm8k.max_tokens"}
    recipe_dict["evaluate"] = []
    assert "benchmarks.gsm8k" in problems_of(write_recipe(recipe_dict))


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ({"method": "dpo", "from": "sft", "pair": "self", "samples": 2}, "stages.a.pair"),
        ({"method": "dpo", "from": "sft", "pairs": "own"}, "stages.a.pairs"),
        ({"method": "sft", "from": "sft", "lora": {"r": 2}, "merge_adaptor": True}, "stages.a.merge_adaptor"),
        ({"method": "sft", "from": "sft", "lora": 2}, "stages.a.lora"),
    ],
)  # fmt: skip
def test_a_misspelt_key_makes_no_problem_that_it_is_the_cause_of(
    recipe_dict, write_recipe, stage, key
):
    """What it was meant to say would have answered the other check."""
    recipe_dict |= {"lora": {"r": 4}, "stages": {"sft": {"method": "sft"}, "a": stage}}
    recipe_dict["data"].pop("preferences")
    assert set(problems_of(write_recipe(recipe_dict))) == {key}


def test_a_stage_with_a_problem_is_still_a_stage_that_others_name(recipe_dict, write_recipe):
    recipe_dict["stages"]["sft"]["trainr"] = {}
    recipe_dict |= {"evaluate": ["gap"], "benchmarks": {"gap": {"fixed": "sft"}}}
    assert set(problems_of(write_recipe(recipe_dict))) == {"stages.sft.trainr"}


def test_a_number_that_yaml_takes_for_text_is_named_in_what_a_judge_is_sent(recipe_dict, tmp_path):
    recipe_dict["judge"] = {"engine": "openai", "model": "m", "request": {"top_p": 0.5}}
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(recipe_dict).replace("top_p: 0.5", "top_p: 5e-1\n    user: '12'")
    )
    found = problems_of(path)
    assert found["judge.request.top_p"] == "YAML takes '5e-1' for text; write 5.0e-1"
    assert "judge.request.user" not in found
