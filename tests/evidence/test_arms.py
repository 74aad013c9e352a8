"""All eight arms of recipes/demo.yaml on real posts and on real dialogues, by the command line.

Each task runs once, and every test looks at what that run has left: 8 training rows, 8 pairs, the
embedded model with LoRA. Minutes long, so `pytest -m slow tests/evidence/test_arms.py`.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from conftest import ROOT, SHARED

from pipeline.models.load import load_tokenizer
from pipeline.steps import artifact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DEMO = ROOT / "recipes" / "demo.yaml"
MODEL = "smollm2-135m-instruct"
ROWS = 8
STAGES = yaml.safe_load(DEMO.read_text())["stages"]
WITH_REFERENCE_MODEL = [
    name for name, stage in STAGES.items() if stage["method"] in ("dpo", "spin")
]
ON_GIVEN_PAIRS = [name for name in WITH_REFERENCE_MODEL if name != "spin"]
ON_ROWS = [name for name in STAGES if name not in WITH_REFERENCE_MODEL]


@dataclass
class Arms:
    """A finished run of the eight arms, and the data as its user has them."""

    recipe: dict
    rows: list[tuple]  # prompt as messages, answer
    pairs: list[tuple]  # prompt as messages, chosen, rejected
    path: Path
    runs: Path
    check: CompletedProcess
    stages: list[CompletedProcess]
    run: CompletedProcess
    report: CompletedProcess

    @property
    def prompt_limit(self):
        return self.recipe.get("max_prompt_length", 512)

    @cached_property
    def steps(self):
        """(stage, kind) -> the step's folder."""
        found = {}
        for spec in self.runs.glob("steps/*/step.json"):
            step = json.loads(spec.read_text())["spec"]
            assert found.setdefault((step["stage"], step["kind"]), spec.parent) == spec.parent
        return found

    def metrics(self, stage, kind="train"):
        return artifact.read_record(self.steps[stage, kind])["metrics"]

    @cached_property
    def answered(self):
        """The prompts that the SFT model was given to answer, in the order of the rows."""
        (folder,) = [at for (_, kind), at in self.steps.items() if kind == "answers"]
        rows = sorted(artifact.read_rows(folder / "samples.jsonl"), key=lambda row: row["id"])
        assert [row["id"] for row in rows] == list(range(ROWS))
        return [row["messages"] for row in rows]


def read(file):
    path = SHARED / file
    if not path.exists():
        pytest.skip(f"{path} is not beside this checkout")
    return path, artifact.read_rows(path)


def text_of(post):
    parts = [f"SUBREDDIT: r/{post['subreddit']}", f"TITLE: {post['title']}"]
    return "\n\n".join([*parts, f"POST: {post['post']}", "TL;DR:"])


def posts(folder):
    """7 short posts and the longest; pairs prefer a post's own summary to that of the next.

    The recipe says nothing of max_prompt_length, which is 512 for posts.
    """
    by_length = sorted(read("reddit_tldr/train.jsonl")[1], key=lambda row: len(row["post"]))
    rows = [*by_length[: ROWS - 1], by_length[-1]]
    prompts = [[{"role": "user", "content": text_of(row)}] for row in rows]
    summaries = [row["summary"] for row in rows]
    pairs = list(zip(prompts, summaries, [*summaries[1:], summaries[0]], strict=True))
    artifact.write_rows(folder / "posts.jsonl", rows)
    names = ("prompt", "chosen", "rejected")
    artifact.write_rows(
        folder / "pairs.jsonl", [dict(zip(names, pair, strict=True)) for pair in pairs]
    )
    files = {"train": folder / "posts.jsonl", "preferences": folder / "pairs.jsonl"}
    return recipe("tldr", files, max_length=640), list(zip(prompts, summaries, strict=True)), pairs


def dialogues(folder):
    """The first dialogues and human-ranked pairs of the files as they are."""
    del folder
    train, rows = read("oasst_en100/sft_best.jsonl")
    preferences, pairs = read("oasst_en100/preferences.jsonl")
    files = {"train": train, "preferences": preferences}
    return (
        recipe("chat", files, max_length=300) | {"max_prompt_length": 200},
        [(row["messages"][:-1], row["messages"][-1]["content"].strip()) for row in rows[:ROWS]],
        [
            (row["prompt"], row["chosen"][0]["content"], row["rejected"][0]["content"])
            for row in pairs[:ROWS]
        ],
    )


def recipe(task, files, *, max_length):
    """The demo with another task, other data and lower limits."""
    recipe = yaml.safe_load(DEMO.read_text()) | {"name": "arms", "task": task, "evaluate": []}
    del recipe["system"]  # that of word problems
    recipe["data"] = {role: {"source": str(path), "limit": ROWS} for role, path in files.items()}
    recipe["micro_batch_size"] = 2
    recipe["trainer"]["max_length"] = max_length
    recipe["generation"]["max_new_tokens"] = 24
    return recipe


@pytest.fixture(scope="module")
def finished():
    """The runs of this module, by task."""
    return {}


@pytest.fixture(params=[posts, dialogues], ids=["posts", "dialogues"])
def arms(request, finished, bashrac, write_recipe, tmp_path) -> Arms:
    """The eight arms, run for the first test that asks: stage by stage, then all at once."""
    if request.param not in finished:
        recipe, rows, pairs = request.param(tmp_path)
        path, runs = write_recipe(recipe), tmp_path / "runs"
        check = bashrac("check", path)
        stages = [bashrac("run", path, "--stage", stage) for stage in STAGES]
        run, report = bashrac("run", path), bashrac("report", path)
        finished[request.param] = Arms(recipe, rows, pairs, path, runs, check, stages, run, report)
    arms = finished[request.param]
    for done in (arms.check, *arms.stages, arms.run, arms.report):
        assert done.returncode == 0, done.stdout + done.stderr
    return arms


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


def prompt_text(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def prompt_ids(tokenizer, messages):
    return tokenizer(prompt_text(tokenizer, messages), add_special_tokens=False)["input_ids"]


def expected_losses(tokenizer, arms, rows):
    """What becomes of rows of (prompt, answer, ...) under the two limits: all stay, some cut."""
    kept = {
        json.dumps(whole): cut for (whole, _), cut in zip(arms.rows, arms.answered, strict=True)
    }
    cut = prompts_cut = 0
    for whole, *answers in rows:
        prompt = prompt_ids(tokenizer, kept[json.dumps(whole)])
        room = arms.recipe["trainer"]["max_length"] - len(prompt) - 1  # the end of the turn
        cut += any(len(tokenizer(answer)["input_ids"]) > room for answer in answers)
        prompts_cut += len(prompt_ids(tokenizer, whole)) > arms.prompt_limit
    return {"rows": ROWS, "dropped": 0, "cut": cut, "prompts_cut": prompts_cut}


def test_every_step_that_check_counts_is_finished(arms):
    assert f"no problems, {len(STAGES)} stages, {len(arms.steps)} steps" in arms.check.stdout
    assert all(artifact.is_finished(folder) for folder in arms.steps.values())
    assert {stage for stage, kind in arms.steps if kind == "train"} == set(STAGES)


def test_a_run_after_all_stages_does_nothing_more_and_prints_the_report(arms):
    assert "started" not in arms.run.stdout
    assert arms.report.stdout.strip() in arms.run.stdout
    assert (arms.runs / "arms" / "report.md").read_text() == arms.report.stdout


def test_the_report_has_a_line_for_every_arm_with_what_it_cost(arms):
    table, _, _ = arms.report.stdout.partition("\n## Cost\n\n")[2].partition("\n\n")
    lines = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    head = [cell.strip() for cell in lines[0]]
    cost = {line[1].strip(): line[head.index("tokens trained")].strip() for line in lines[2:]}
    assert list(cost) == list(STAGES)
    for stage, tokens in cost.items():
        assert tokens == f"{arms.metrics(stage)['tokens_trained']:,}" != "0"


def test_a_finished_arm_is_not_called_unfinished(arms):
    assert "not finished" not in arms.report.stdout


def test_no_training_row_and_no_pair_is_lost_and_the_cuts_are_counted(arms, tokenizer):
    for stages, rows in ((ON_ROWS, arms.rows), (ON_GIVEN_PAIRS, arms.pairs)):
        losses = expected_losses(tokenizer, arms, rows)
        assert losses["prompts_cut"] > 0, "no prompt of the data is too long"
        assert (losses["cut"] > 0) == (arms.recipe["task"] == "chat")
        for stage in stages:
            own = {"self_generated_rows": ROWS} if stage in ("bash", "rac") else {}
            data = arms.metrics(stage)["data"]
            assert {name: data.get(name) for name in losses | own} == losses | own, stage


def test_spin_pairs_every_reference_with_another_answer(arms):
    pairs = arms.metrics("spin", "pairs")["figures"]
    assert pairs["answers"] == ROWS == pairs["pairs"] + pairs["answers = reference"]
    data = arms.metrics("spin")["data"]
    assert (data["rows"], data["dropped"]) == (pairs["pairs"], 0)


def test_every_prompt_answered_is_within_the_limit_and_ends_as_the_template_demands(
    arms, tokenizer
):
    question = "TL;DR:" if arms.recipe["task"] == "tldr" else ""
    for messages in arms.answered:
        assert len(prompt_ids(tokenizer, messages)) <= arms.prompt_limit
        text = prompt_text(tokenizer, messages)
        assert text.endswith(f"{question}<|im_end|>\n<|im_start|>assistant\n")


def test_a_post_too_long_loses_last_lines_and_a_dialogue_its_oldest_turns_and_no_more_than_needed(
    arms, tokenizer
):
    for (whole, _), kept in zip(arms.rows, arms.answered, strict=True):
        if len(prompt_ids(tokenizer, whole)) <= arms.prompt_limit:
            assert kept == whole
            continue
        if arms.recipe["task"] == "chat":
            assert kept == whole[-len(kept) :] and kept[0]["role"] == "user"
            longer = whole[-len(kept) - 2 :]  # with the turns of user and assistant before
        else:
            text = kept[0]["content"].removesuffix("\n\nTL;DR:")
            rest = whole[0]["content"].removesuffix("\n\nTL;DR:").removeprefix(text)
            assert rest.startswith("\n") and kept[0]["content"] == f"{text}\n\nTL;DR:"
            content = f"{text}\n\n{rest.strip().splitlines()[0]}\n\nTL;DR:"
            longer = [{"role": "user", "content": content}]
        assert len(prompt_ids(tokenizer, longer)) > arms.prompt_limit


@pytest.mark.parametrize(("stage", "kind"), [("bash", "contexts"), ("rac", "corrections")])
def test_self_generated_rows_continue_the_very_prompt_that_was_answered(
    arms, tokenizer, stage, kind
):
    rows = artifact.read_rows(arms.steps[stage, kind] / "rows.jsonl")
    assert sorted(row["id"] for row in rows) == list(range(ROWS))
    for row in rows:
        prompt = prompt_ids(tokenizer, arms.answered[row["id"]])
        assert row["input_ids"][: len(prompt)] == prompt
        assert set(row["labels"][: len(prompt)]) == {-100}
        assert len(row["labels"]) == len(row["input_ids"]) > len(prompt)


def test_bash_labels_are_the_reference_and_its_end_and_the_context_differs(arms, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    replaced = []
    for row in artifact.read_rows(arms.steps["bash", "contexts"] / "rows.jsonl"):
        answer = [*tokenizer(arms.rows[row["id"]][1])["input_ids"], end]
        start = len(prompt_ids(tokenizer, arms.answered[row["id"]]))
        assert row["labels"][start:] == answer[: arms.recipe["trainer"]["max_length"] - start]
        pairs = zip(row["input_ids"][start:], row["labels"][start:], strict=True)
        replaced += [token != label for token, label in pairs]
    share = arms.metrics("bash", "contexts")["figures"]["differ from the reference"]
    assert share == pytest.approx(sum(replaced) / len(replaced))
    assert 0 < share < STAGES["bash"]["beta"]  # a drawn token may be the same


def test_rac_says_how_far_its_labels_are_from_the_answers_and_from_the_references(arms, tokenizer):
    figures = arms.metrics("rac", "corrections")["figures"]
    changed, dropped = [], 0
    for row in artifact.read_rows(arms.steps["rac", "corrections"] / "rows.jsonl"):
        start = len(prompt_ids(tokenizer, arms.answered[row["id"]]))
        pairs = list(zip(row["input_ids"][start:], row["labels"][start:], strict=True))
        changed += [token != label for token, label in pairs if label != -100]
        dropped += sum(label == -100 for _, label in pairs)
    assert (figures["labels"], figures["labels dropped"]) == (len(changed), dropped)
    assert figures["label differs from own token"] == pytest.approx(sum(changed) / len(changed))
    assert 0 < sum(changed) < len(changed), "labels are to correct some of the tokens, not all"
    assert 0 <= figures["label = reference's token there"] <= 1


@pytest.mark.parametrize("stage", WITH_REFERENCE_MODEL)
def test_the_first_loss_is_ln_2_wherever_a_reference_model_is_used(arms, stage):
    assert arms.metrics(stage)["first_loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_every_arm_leaves_an_adapter_of_its_own_and_no_whole_model(arms):
    adapters = {}
    for (stage, kind), folder in arms.steps.items():
        if kind == "train":
            config = json.loads((folder / "model" / "adapter_config.json").read_text())
            assert config["r"] == arms.recipe["lora"]["r"]
            assert not list((folder / "model").glob("model*.safetensors"))
            adapters[stage] = artifact.file_digest(folder / "model" / "adapter_model.safetensors")
    assert len(set(adapters.values())) == len(STAGES)


def test_every_warning_stands_in_the_report_and_was_said_while_running(arms):
    _, found, listed = arms.report.stdout.partition("## Warnings\n")
    assert found, arms.report.stdout
    lines = [line.removeprefix("- ") for line in listed.splitlines() if line.startswith("- ")]
    stages_of = {
        warning: stages.split(", ")
        for stages, _, warning in (line.partition(": ") for line in lines)
    }
    warned = {
        (stage, warning)
        for stage, kind in arms.steps
        for warning in arms.metrics(stage, kind).get("warnings", [])
    }
    assert set(stages_of) == {warning for _, warning in warned}
    said = "".join(stage.stdout for stage in arms.stages)
    for stage, warning in warned:
        assert stage in stages_of[warning]
        assert warning in said
    for stage in [*ON_ROWS, *ON_GIVEN_PAIRS]:
        assert any(name == stage and "prompts cut" in warning for name, warning in warned), stage
