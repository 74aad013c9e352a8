"""The recipes of the paper's tables: what they say, and that every one runs from a hub's own rows.

No hub can be reached from tests: one on loopback serves sets of the same names, splits and columns as
the real ones, a few rows each.
"""

import json
import re

import pytest
import yaml
from hub_server import clients_of, running_hub

from pipeline.data.builtin.rows import builtin_rows
from pipeline.plan.load import load_recipe, variants_of
from pipeline.plan.plan import make_plan
from pipeline.recipe import shipped
from pipeline.steps import artifact, identity

TABLES = ["alpaca-mistral-7b", "gsm8k-mistral-7b", "tldr-pythia-1b"]
ARMS = {
    "sft": ("sft", None),
    "neftune": ("sft", None),
    "spin": ("spin", "sft"),
    "bash": ("bash", "sft"),
    "rac": ("rac", "sft"),
    "sft-dpo": ("dpo", "sft"),
    "bash-dpo": ("dpo", "bash"),
    "rac-dpo": ("dpo", "rac"),
}
PUBLISHED = {
    "tldr-pythia-1b": {"sft": {"tldr": 27.03}, "bash": {"tldr": 28.12}},
    "alpaca-mistral-7b": {
        "sft": {"alpaca": "8.03*"},
        "rac": {"alpaca": 10.37},
        "sft-dpo": {"alpaca": "14.06*"},
        "rac-dpo": {"alpaca": "15.85*"},
    },
    "gsm8k-mistral-7b": {"sft": {"gsm8k": "56.76*"}, "bash": {"gsm8k": "60.22*"}},
}
_AT = "0123456789abcdef0123456789abcdef01234567"
PINNED = {
    name: [f"{key}.revision='{_AT}'" for key in keys] + [f"revision='{_AT}'"]
    for name, keys in {
        "alpaca-mistral-7b": ["data.train", "data.test", "data.preferences"],
        "tldr-pythia-1b": ["data.train", "data.test", "data.preferences"],
    }.items()
}
# Read from a file of the hub with it, whose commit would have to be looked up.
PINNED["alpaca-mistral-7b"] += [
    f"benchmarks.alpaca.{key}={{source: tatsu-lab/alpaca_eval, file: {file}, revision: '{_AT}'}}"
    for key, file in {
        "data": "alpaca_eval_gpt4_baseline.json", "gamed": "df_gamed.csv",
        "difficulty": "df_gamed.csv",
    }.items()
]  # fmt: skip
EVERY = [(name, variant) for name in TABLES for variant in variants_of(name)]


def test_these_are_the_recipes_that_are_shipped():
    studies = ["study-chat", "study-maths", "study-posts"]
    assert shipped.recipe_names() == sorted([*TABLES, *studies, "demo"])
    for name in TABLES:
        api = [] if name == "gsm8k-mistral-7b" else ["lora-api"]  # where a judge is asked
        assert variants_of(name) == ["lora", "qlora", "full", *api]


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_every_variant_has_the_eight_arms_and_the_published_numbers(name, variant):
    recipe = load_recipe(name, variant=variant)
    assert recipe.name == f"{name}-{variant}"
    arms = {arm: (stage.method, stage.start) for arm, stage in recipe.stages.items()}
    assert arms == ARMS
    assert recipe.stages["neftune"].trainer == {"neftune_noise_alpha": 5}
    assert recipe.stages["bash"].beta == 0.2  # the paper's
    assert recipe.published == PUBLISHED[name]


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_no_arm_trains_on_a_test_split(name, variant):
    data = load_recipe(name, variant=variant).data
    trained_on = [data.train, *([] if data.preferences == "self" else [data.preferences])]
    for source in trained_on:
        assert re.match(r"train(_|$)", source.split), source
    assert re.match(r"test(_|$)", data.test.split) and data.test.source == data.train.source


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_a_variant_says_what_runs_and_how_and_no_more_than_that(name, variant):
    """The rest is shared: but for these keys, variants are one recipe."""
    recipe, other = (load_recipe(name, variant=one) for one in (variant, "full"))
    assert recipe.launch == {"full": "fsdp2"}.get(variant, "single_gpu")
    assert (recipe.lora is None) == (variant == "full")
    assert recipe.quantize == {"qlora": "nf4"}.get(variant)
    assert recipe.trainer.get("optim") == {"qlora": "paged_adamw_8bit"}.get(variant)
    own = {"name", "launch", "micro_batch_size", "lora", "quantize", "trainer", "stages"}
    own |= {"judge"} if variant == "lora-api" else set()
    assert recipe.model_dump(exclude=own | {"generation"}) == other.model_dump(
        exclude=own | {"generation"}
    )
    rates = {"learning_rate", "optim"}
    assert {key: value for key, value in recipe.trainer.items() if key not in rates} == {
        key: value for key, value in other.trainer.items() if key not in rates
    }
    for arm, stage in recipe.stages.items():
        assert _without_rate(stage) == _without_rate(other.stages[arm])


def _without_rate(stage):
    kept = stage.model_dump(exclude={"learning_rate"})
    return kept | {"trainer": {**kept["trainer"], "learning_rate": None}}


@pytest.mark.parametrize("name", ["alpaca-mistral-7b", "tldr-pythia-1b"])
def test_the_judge_is_pinned_and_needs_no_key_but_in_the_variant_that_says_so(name):
    judges = {variant: load_recipe(name, variant=variant).judge for variant in variants_of(name)}
    api = judges.pop("lora-api")
    assert api.engine == "openai" and (api.revision, api.quantize) == (None, None)
    (judge,) = {one.model_dump_json() for one in judges.values()}
    judge = json.loads(judge)
    assert (judge["engine"], judge["reads"], judge["orders"]) == ("local", "label", "both")
    assert re.fullmatch("[0-9a-f]{40}", judge["revision"])
    lora, with_api = (
        make_plan(load_recipe(name, PINNED[name], one)) for one in ("lora", "lora-api")
    )
    others = {step.fingerprint for step in lora.steps} ^ {
        step.fingerprint for step in with_api.steps
    }
    steps = {step.fingerprint: step for step in [*lora.steps, *with_api.steps]}
    assert {steps[one].kind for one in others} == {load_recipe(name).evaluate[0]}


def test_the_full_variants_train_as_published():
    tldr, alpaca = (load_recipe(name, variant="full") for name in (TABLES[2], TABLES[0]))
    assert (tldr.trainer["learning_rate"], tldr.batch_size) == (3e-6, 128)
    assert (alpaca.trainer["learning_rate"], alpaca.batch_size) == (2e-5, 128)
    assert (alpaca.trainer["warmup_steps"], alpaca.trainer["max_length"]) == (0.1, 2048)
    for recipe, rate, beta, batch in ((tldr, 3e-6, 0.05, 64), (alpaca, 5e-7, 0.01, 128)):
        assert recipe.trainer["lr_scheduler_type"] == "cosine"
        assert recipe.trainer["num_train_epochs"] == 1
        for arm in ("sft-dpo", "bash-dpo", "rac-dpo"):
            stage = recipe.stages[arm]
            trainer = recipe.trainer_for(stage)
            assert (trainer["learning_rate"], trainer["beta"]) == (rate, beta)
            assert recipe.batch_size_for(stage) == batch
    for name in TABLES:
        spin = load_recipe(name, variant="full").stages["spin"]
        assert [spin.of_round(number) for number in (1, 2, 3, 4)] == [
            {"learning_rate": 5e-7, "beta": 0.1}, {"learning_rate": 5e-7, "beta": 0.1},
            {"learning_rate": 1e-7, "beta": 0.1}, {"learning_rate": 1e-7, "beta": 5.0},
        ]  # fmt: skip
        assert spin.batch_size == 64


@pytest.mark.parametrize("name", TABLES)
def test_nothing_but_name_and_model_is_of_one_model(name):
    raw = yaml.safe_load((shipped.folder("recipes") / f"{name}.yaml").read_text())
    rest = json.dumps({key: value for key, value in raw.items() if key not in ("name", "model")})
    assert not re.search("mistral|pythia|eleuther", rest, re.IGNORECASE)


# The real sets' columns, as their cards list them.


def tldr_rows(split):
    return [
        {"id": f"t3_{number}", **row, "summary": f" {row['summary']}"}
        for number, row in enumerate(builtin_rows("posts", split, limit=6))
    ]


def tldr_comparisons(split):
    rows = []
    for row in builtin_rows("posts", split, limit=6):
        info = {key: row[key] for key in ("subreddit", "title", "post")}
        prompt = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post} \n\nTL;DR:".format(
            **info
        )
        sides = {
            side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", row["summary"]), ("rejected", row["title"]))
        }
        rows.append({"prompt": prompt, **sides, "info": info, "choice": 1})
    rows[0]["rejected"] = rows[0]["chosen"]  # and such rows are among the real ones
    return rows


def dialogues(split):
    rows = []
    for number, row in enumerate(builtin_rows("chat", split, limit=6)):
        prompt = row["messages"][0]["content"]
        rows.append({"prompt": prompt, "prompt_id": str(number), "messages": row["messages"]})
    return rows


def ranked(split):
    rows = []
    for number, row in enumerate(builtin_rows("maths", split, limit=6)):
        prompt = row["question"]
        sides = {
            side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", row["answer"]), ("rejected", "I cannot say."))
        }
        scores = {"score_chosen": 8.0, "score_rejected": 4.0}
        rows.append({"prompt": prompt, "prompt_id": str(number), **sides, **scores})
    rows[1]["rejected"][1]["content"] = ""
    return rows


def problems(split):
    return list(builtin_rows("maths", split, limit=6))


SETS = {
    "vwxyzjn/summarize_from_feedback_tldr_3_filtered": ("default", tldr_rows, "train test"),
    "trl-internal-testing/tldr-preference-trl-style": ("default", tldr_comparisons, "train"),
    "HuggingFaceH4/ultrachat_200k": ("default", dialogues, "train_sft test_sft"),
    "HuggingFaceH4/ultrafeedback_binarized": ("default", ranked, "train_prefs"),
    "openai/gsm8k": ("main", problems, "train test"),
}


def as_repository(config, rows_of, splits):
    """A data set's files: rows of each split, and a card that names them."""
    files = {}
    for split in splits.split():
        lines = [json.dumps(row) for row in rows_of(split.split("_")[0])]
        files[f"{split}.jsonl"] = "\n".join(lines).encode()
    listed = [{"split": split, "path": f"{split}.jsonl"} for split in splits.split()]
    card = yaml.safe_dump({"configs": [{"config_name": config, "data_files": listed}]})
    return {**files, "README.md": f"---\n{card}---\n".encode()}


@pytest.fixture(scope="module")
def hub():
    baseline = [
        {"instruction": f"Say {number}.", "output": f"It is {number}.", "generator": "g"}
        for number in range(4)
    ]
    with running_hub() as hub:
        for name, repository in SETS.items():
            hub.push("datasets", name, as_repository(*repository))
        files = {
            "alpaca_eval_gpt4_baseline.json": json.dumps(baseline).encode(),
            "df_gamed.csv": b"instruction,instruction_difficulty,std_delta_len,preference\n",
        }
        hub.push("datasets", "tatsu-lab/alpaca_eval", files)
        for model in ("EleutherAI/pythia-1b-deduped", "mistralai/Mistral-7B-v0.1"):
            hub.push("models", model, {"config.json": b"{}"})
        yield hub


def test_check_finds_nothing_wrong_with_any_variant(hub, bashrac, tmp_path):
    done = bashrac("check", *TABLES, env=clients_of(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [
        f"{name} (variant {variant}): no problems" for name, variant in EVERY
    ]


def smaller(model):
    """What makes a paper's table a matter of seconds: the rows are the recipe's, only few."""
    changes = {
        "model": model, "launch": "cpu", "batch_size": 4, "micro_batch_size": 2,
        "trainer.max_steps": 2, "trainer.bf16": "false", "trainer.optim": "adamw_torch",
        "trainer.max_length": 480, "max_prompt_length": 300, "generation.max_new_tokens": 8,
        "generation.batch_tokens": 1024, "generation.dtype": "float32",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in changes.items()]


def of_table(name):
    if name == "alpaca-mistral-7b":
        keys = ("gamed=null", "difficulty=null", "max_new_tokens=8")
        return ["judge=reference", *(f"benchmarks.alpaca.{key}" for key in keys)]
    return ["judge=reference"] if name == "tldr-pythia-1b" else []


@pytest.fixture
def hub_here(hub, tmp_path, monkeypatch):
    """The clients of this process know that hub only."""
    for module in ("huggingface_hub.constants.ENDPOINT", "datasets.config.HF_ENDPOINT"):
        monkeypatch.setattr(module, hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("BASHRAC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    identity.hub_commit.cache_clear()
    yield hub
    identity.hub_commit.cache_clear()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_one_seed_says_what_three_cost(name, hub_here):
    plan = make_plan(load_recipe(name, ["seeds=[0, 1, 2]"]))
    lines = (shipped.folder("recipes") / f"{name}.yaml").read_text().splitlines()
    said = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    trainings = sum(step.kind == "train" for step in plan.steps)
    words = [f"one, for what three cost: {trainings} trainings in place of {trainings // 3}"]
    items = {"tldr": 1000, "alpaca": 805}
    for benchmark in items.keys() & set(plan.recipe.evaluate):
        judged = [one for _, one, _ in plan.results if one == benchmark]
        calls = 2 * items[benchmark] * len(judged)
        words.append(f"at most {calls:,} judge calls in place of {calls // 3:,}")
    assert all(one in said for one in words), said


@pytest.fixture
def run_arms(hub_here, plain_model, tmp_path):
    """Run arms of a recipe in this process; returns the plan and the report."""

    def run(name, arms, *overrides, variant=None):
        from eval.report.collect import collect
        from pipeline.run.worker import execute
        from pipeline.steps.context import StepContext, write_spec

        changes = [*smaller(plain_model), *of_table(name), *overrides]
        plan, runs = make_plan(load_recipe(name, changes, variant)), tmp_path / "runs"
        for step in [step for arm in arms for step in plan.all_steps[arm, 0]]:
            if not artifact.is_finished(step.directory(runs)):
                execute(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
        for arm in arms:
            model = plan.models[arm, 0]
            record = artifact.read_record((model.adapter or model.base).directory(runs))
            assert record["metrics"]["optimizer_steps"] == 2
        report = collect(plan, runs)
        assert {row.stage for row in report.rows if row.seeds} == set(arms)
        return plan, report

    return run


@pytest.mark.parametrize("name", TABLES)
def test_sft_rac_and_dpo_of_every_recipe_run_two_steps_on_rows_of_a_hub(name, run_arms):
    plan, report = run_arms(name, ("sft", "rac", "rac-dpo"))
    recipe = plan.recipe
    published = str(PUBLISHED[name]["sft"][recipe.evaluate[0]])
    assert published in {row.published for row in report.rows if row.stage == "sft"}
    left_out = [warning for warning in report.warnings if "left out (skip_unusable)" in warning]
    assert len(left_out) == (recipe.data.preferences != "self")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_all_arms_of_every_variant_run_two_steps_on_rows_of_a_hub(name, variant, run_arms):
    run_arms(name, ARMS, "stages.spin.prompts=6", variant=variant)
