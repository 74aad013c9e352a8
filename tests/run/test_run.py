"""The command line end to end: real processes through accelerate, tiny real models."""

import json

import pytest
import yaml
from conftest import ROOT


def test_a_recipe_runs_to_its_table_and_a_second_run_does_nothing(
    bashrac, recipe_dict, write_recipe, tmp_path
):
    """All eight arms. spin and rac share the answers of sft, so 29 steps and not 30."""
    arms = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())["stages"]
    assert len(arms) == 8 and arms["spin"].pop("prompts")
    path = write_recipe(recipe_dict | {"stages": arms})
    first = bashrac("run", path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "| bash-dpo" in first.stdout and "bash, contexts: done in" in first.stdout
    records = sorted(tmp_path.glob("runs/steps/*/record.json"))
    assert len(records) == 29
    logs = {log.name: log.read_text() for log in tmp_path.glob("runs/tiny/logs/*.log")}
    assert set(logs) == {f"{stage}-seed0.log" for stage in arms}
    assert all("optimizer step" in log for log in logs.values()), "each stage in its own log"
    assert "".join(logs.values()).count("$ accelerate launch") == 1, "one process for all steps"
    times = [path.stat().st_mtime_ns for path in records]
    second = bashrac("run", path)
    assert second.returncode == 0 and "started" not in second.stdout
    assert [path.stat().st_mtime_ns for path in records] == times
    table = lambda text: [line for line in text.splitlines() if line.startswith("|")]  # noqa: E731
    # Four times head, rule and eight arms (grades, grades against cost, costs of each, costs in all);
    # then head, rule and a row for pairs, contexts and corrections.
    assert table(second.stdout) == table(first.stdout) and len(table(first.stdout)) == 40 + 3 * 3
    for suffix in ("md", "csv", "json", "html"):
        assert (tmp_path / "runs" / "tiny" / f"report.{suffix}").stat().st_size > 100
    record = json.loads(records[0].read_text())
    assert {"kind", "fingerprint", "identity", "inputs", "seed", "versions", "host", "device",
            "started", "ended", "seconds", "peak_memory_bytes", "metrics", "files"} <= set(record)  # fmt: skip
    plan = bashrac("plan", path)
    assert "29 steps: 29 done, 0 to run" in plan.stdout
    changed = bashrac("plan", path, "--set", "stages.bash.beta=0.3")
    assert "changed since the last run: beta 0.2 -> 0.3" in changed.stdout
    assert "29 steps: 22 done, 7 to run" in changed.stdout
    assert "accelerate launch" not in changed.stdout
    listed = bashrac("plan", path, "--set", "stages.bash.beta=0.3", "--commands").stdout
    assert listed.count("accelerate launch --config_file") == 7, "one for each step to run"


@pytest.mark.launches
def test_inside_processes_the_user_launched(recipe_dict, write_recipe, tmp_path):
    """`accelerate launch --config_file ... -m pipeline run RECIPE --stage S`, beside an eval.py."""
    import os
    import subprocess
    import sys

    (tmp_path / "eval.py").write_text("raise SystemExit('a file of the user was imported')")
    recipe_dict["stages"] = {key: recipe_dict["stages"][key] for key in ("sft", "bash")}
    path = write_recipe(recipe_dict)

    def launch(stage):
        return subprocess.run(
            [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
             str(ROOT / "accelerate_configs" / "cpu.yaml"), "-m", "pipeline", "run", str(path),
             "--stage", stage],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip

    early = launch("bash")
    assert early.returncode != 0 and "run it first: --stage sft" in early.stderr
    assert launch("sft").returncode == 0
    done = launch("bash")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("runs/steps/contexts-*/record.json"))) == 1
    assert "not finished" not in done.stdout


def test_a_failing_step_names_the_error_the_log_and_the_way_back(
    bashrac, recipe_dict, write_recipe, tmp_path
):
    rows = [
        {"question": "What is 1 + 1?", "answer": "#### 2"},
        {"question": "What?", "answer": None},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    recipe_dict["data"]["train"] = {"source": str(tmp_path / "rows.jsonl")}
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    done = bashrac("run", write_recipe(recipe_dict))
    assert done.returncode == 2
    assert "rows.jsonl:2: field 'answer' is missing" in done.stderr
    assert "log:" in done.stderr and "retry: bashrac run" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.glob("runs/steps/*/record.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "no-such-organisation/no-such-model"}, "no-such-model"),
        ({"data": {"train": "no-such-organisation/no-such-data", "test": "builtin:maths"}}, "no-such-data"),
        ({"launch": "single_gpu"}, "--launch cpu"),
    ],
    ids=["model", "data set", "gpu"],
)  # fmt: skip
def test_what_is_not_there_is_one_sentence_with_a_way_out(
    bashrac, recipe_dict, write_recipe, change, message
):
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    done = bashrac("run", write_recipe(recipe_dict | change), env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_prompt_over_the_models_window_is_named(bashrac, recipe_dict, write_recipe, tmp_path):
    row = {"question": "long " * 600, "answer": "#### 2"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    recipe_dict["data"]["test"] = {"source": str(tmp_path / "test.jsonl")}
    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    done = bashrac("run", write_recipe(recipe_dict))
    assert done.returncode == 2 and "exceed the model's window of 512" in done.stderr


def test_a_read_only_or_full_folder_is_a_sentence(bashrac, recipe_dict, write_recipe, tmp_path):
    (tmp_path / "blocked").write_text("a file where the runs folder should be")
    done = bashrac("run", write_recipe(recipe_dict), "--runs", tmp_path / "blocked")
    assert done.returncode == 1 and "cannot write" in done.stderr and "--runs DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_process_on_a_step_leaves_no_trace_of_its_failure(
    recipe_dict, write_recipe, tmp_path
):
    """An error file of the one that is turned away would stop the one that works."""
    from filelock import FileLock

    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.run.worker import run_steps
    from pipeline.steps.artifact import ERROR, LOCK
    from pipeline.steps.context import write_spec

    step = make_plan(load_recipe(write_recipe(recipe_dict))).steps[0]
    spec = write_spec(step, tmp_path, processes=1, use_cpu=True)
    with FileLock(spec.parent / LOCK):
        assert run_steps([spec]) == 1
    assert not (spec.parent / ERROR).exists()
    (spec.parent / ERROR).write_text("{}")  # of an earlier attempt
    assert run_steps([spec]) == 0 and not (spec.parent / ERROR).exists()


def test_check_exits_2_with_every_problem(bashrac, recipe_dict, write_recipe):
    recipe_dict["stages"]["bash"] |= {"beta": 3, "round": 2}
    done = bashrac("check", write_recipe(recipe_dict))
    assert done.returncode == 2
    assert "2 problems" in done.stderr and "did you mean rounds?" in done.stderr


def test_check_names_the_recipe_of_a_problem_that_only_planning_finds(
    bashrac, recipe_dict, write_recipe
):
    """As one of several that are checked at once."""
    recipe_dict["data"]["train"] = "no-such-organisation/no-such-data"
    other, bad = write_recipe(recipe_dict | {"data": {}}, "other.yaml"), write_recipe(recipe_dict)
    done = bashrac("check", other, bad, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2 and f"\n{bad}: data.train: data set " in done.stderr


def test_copy_starts_a_recipe_and_never_overwrites(bashrac, tmp_path):
    assert bashrac("copy", "demo", "mine.yaml").returncode == 0
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["name"] == "demo"
    again = bashrac("copy", "demo", "mine.yaml")
    assert again.returncode == 2 and "nothing is overwritten" in again.stderr
    assert "demo" in bashrac("recipes").stdout


def test_report_formats_of_an_unfinished_recipe(bashrac, recipe_dict, write_recipe):
    path = write_recipe(recipe_dict)
    assert "not finished" in bashrac("report", path).stdout
    (row, *_) = json.loads(bashrac("report", path, "--format", "json").stdout)["rows"]
    assert (row["stage"], row["n"], row["measures"]) == ("sft", None, {})
    assert bashrac("report", path, "--format", "csv").stdout.startswith("benchmark,stage,method")


def test_a_warning_is_shown_while_the_run_goes_on_and_in_the_report(
    bashrac, recipe_dict, write_recipe
):
    """At most 110 tokens: some answers are cut."""
    recipe_dict["trainer"]["max_length"] = 110
    recipe_dict |= {"stages": {"sft": {"method": "sft"}}, "evaluate": []}
    done = bashrac("run", write_recipe(recipe_dict))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nwarning: sft, train: " in done.stdout
    assert "## Warnings\n\n- sft: " in done.stdout


def test_a_run_whose_output_nobody_reads_any_more_does_not_end_as_done(
    recipe_dict, write_recipe, tmp_path
):
    """As in `bashrac run recipe.yaml | head -1`."""
    import os
    import subprocess
    import sys

    recipe_dict["stages"] = {"sft": {"method": "sft"}}
    command = [sys.executable, "-m", "pipeline", "run", str(write_recipe(recipe_dict))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline().startswith("4 steps")
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert said.startswith("error: nobody reads the output any more")
    assert not list(tmp_path.glob("runs/steps/*/record.json"))
