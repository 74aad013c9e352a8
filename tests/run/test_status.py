"""`bashrac plan` and `bashrac status`, on folders as runs leave them and on a run that goes on."""

import fcntl
import os
import re

import pytest
from conftest import ROOT

from pipeline.plan import changes
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.schema import Source
from pipeline.recipe.shipped import read_launch
from pipeline.run.findable import describe_findable
from pipeline.run.plan_text import explain
from pipeline.run.status import status
from pipeline.steps import artifact, lock
from pipeline.steps.context import write_spec

CPU = read_launch("cpu")


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def plan_of(recipe_dict, write_recipe):
    return lambda *overrides: make_plan(load_recipe(write_recipe(recipe_dict), overrides))


def finish(step, runs, seconds, device="cpu (x86_64, 2 cores)"):
    """Leave what a finished step leaves, as far as plans look at it."""
    folder = write_spec(step, runs, processes=1, use_cpu=True).parent
    record = {
        "fingerprint": step.fingerprint, "identity": step.identity, "device": device,
        "processes": 1, "seconds": seconds, "files": {},
    }  # fmt: skip
    artifact.write_record(folder, record)


def tree(plan, runs, **options):
    return explain(plan, runs, CPU, **options).splitlines()


def told(plan, runs, **options):
    command = lambda verb: f"bashrac {verb} tiny.yaml"  # noqa: E731
    return status(plan, runs, CPU, **{"seed": None, "command": command, **options})


# --- the tree of `bashrac plan` -----------------------------------------------------------------


def test_a_plan_is_a_tree_of_stages_below_those_they_start_from(plan_of, runs):
    assert tree(plan_of(), runs) == [
        "sft",
        "  overlap with gsm8k     to run  new",
        "  train                  to run  new",
        "  answers for gsm8k      to run  new",
        "  grade gsm8k            to run  new",
        "  bash, from sft",
        "    contexts             to run  new",
        "    train                to run  new",
        "    answers for gsm8k    to run  new",
        "    grade gsm8k          to run  new",
        "    bash-dpo, from bash",
        "      train              to run  new",
        "      answers for gsm8k  to run  new",
        "      grade gsm8k        to run  new",
        "  sft-dpo, from sft",
        "    train                to run  new",
        "    answers for gsm8k    to run  new",
        "    grade gsm8k          to run  new",
        "",
        "precision: float32",
        "14 steps: 0 done, 14 to run",
    ]


def test_a_plan_says_which_differences_its_seeds_and_items_show(plan_of, runs):
    plan = plan_of("data.test.limit=600", "seeds=[0]")
    assert tree(plan, runs)[-6:] == [
        "what 4 in 5 reports would find, with 600 items of gsm8k, if seeds scatter by 1 point:",
        "  1 seed calls no method better than another; 3 seeds find a true difference of 8.6 points",
        "  seeds needed: more than 20 for 1, more than 20 for 2, 5 for 5 points",
        "",
        "precision: float32",
        "14 steps: 0 done, 14 to run",
    ]
    several = plan_of("data.test.limit=600", "seeds=[0, 1, 2, 3, 4]")
    assert "  5 seeds find a true difference of 4.7 points" in tree(several, runs)
    assert "reports" not in " ".join(tree(plan, runs, commands=True))


@pytest.mark.parametrize(
    ("test", "items"),
    [
        ({"source": "builtin:maths", "limit": 600}, 600),
        ({"source": "mine.jsonl", "skip": 10, "limit": 50}, 50),
        ({"source": "openai/gsm8k", "name": "main", "split": "test"}, 1319),
        ({"source": "openai/gsm8k", "name": "main", "split": "test", "skip": 1000}, 319),
        ({"source": "openai/gsm8k", "name": "main", "split": "test", "limit": 2000}, 1319),
        # Only the rows themselves tell how many there are.
        ({"source": "openai/gsm8k", "name": "main", "split": "train"}, None),
        ({"source": "mine.jsonl"}, None),
        ({"source": "builtin:maths", "limit": 10}, None),  # a trial run
    ],
)
def test_items_are_counted_where_no_row_has_to_be_read(plan_of, test, items):
    recipe = plan_of().recipe
    data = recipe.data.model_copy(update={"test": Source(**test)})
    lines = describe_findable(recipe.model_copy(update={"data": data}))
    assert lines == [] if items is None else f"with {items} items of gsm8k," in lines[0]


def test_a_plan_leaves_out_what_has_no_right_and_wrong_or_no_other_stage(plan_of):
    assert describe_findable(plan_of("evaluate=[rouge]", "data.test.limit=600").recipe) == []
    recipe = plan_of("data.test.limit=600").recipe
    only = recipe.model_copy(update={"stages": {"sft": recipe.stages["sft"]}})
    assert describe_findable(only) == []


def test_finished_steps_tell_how_long_others_of_their_kind_will_take(plan_of, runs):
    """sft-dpo's 60 s say what bash-dpo's training takes; nothing has trained as bash does."""
    plan = plan_of()
    changes.remember(plan, runs)
    for step in plan.steps:
        if step.stage in ("sft", "sft-dpo"):
            finish(step, runs, 60.0 if step.kind == "train" else 5.0)
    now = "\n".join(tree(plan, runs))
    assert "  sft-dpo, from sft\n    train                done     1 min 00 s\n" in now
    assert "      train              to run  ~1 min 00 s  not finished yet\n" in now
    assert "    contexts             to run               not finished yet\n" in now
    assert "    train                to run               not finished yet\n" in now
    assert now.endswith("14 steps: 7 done, 7 to run, about 1 min 20 s for 5 of them")
    longer = "\n".join(tree(plan_of("trainer.max_steps=900"), runs))
    assert "~1 min 00 s" not in longer, "other amounts take another time"


def test_steps_on_a_gpu_tell_nothing_of_a_cpu(plan_of, runs):
    plan = plan_of()
    for step in plan.steps[:4]:
        finish(step, runs, 5.0, device="1 x NVIDIA H100")
    assert "~" not in "\n".join(tree(plan, runs))


def test_seeds_of_which_the_same_is_to_be_said_share_a_line(plan_of, runs):
    plan = plan_of("seeds=[0, 1, 2]")
    lines = tree(plan, runs)
    assert "  overlap with gsm8k               to run  new" in lines, "it is of all seeds"
    assert "    contexts (3 seeds)             to run  new" in lines
    for step in plan.steps:
        if step.stage == "sft" and step.seed == 1:
            finish(step, runs, 10.0)
    lines = tree(plan, runs)
    assert "  train (seed 1)                   done     10 s" in lines
    assert "  train (seeds 0, 2)               to run  ~20 s  new" in lines


def test_a_shared_step_is_listed_once_and_named_where_it_is_used(recipe_dict, plan_of, runs):
    recipe_dict["stages"] = {"a": {"method": "sft"}, "b": {"method": "sft"}}
    lines = tree(plan_of(), runs)
    at = lines.index("b")
    assert lines[at + 1 : at + 4] == [
        "  train               shared  listed under a",
        "  answers for gsm8k   shared  listed under a",
        "  grade gsm8k         shared  listed under a",
    ]
    assert lines[-1] == "4 steps: 0 done, 4 to run"


def test_reasons_follow_the_edit_and_wrap_at_the_width_of_a_terminal(plan_of, runs):
    plan = plan_of()
    changes.remember(plan, runs)
    for step in plan.steps:
        finish(step, runs, 5.0)
    edited = plan_of("stages.bash.beta=0.3", "stages.bash.lambda=0.5", "stages.bash.top_k=5")
    lines = "\n".join(tree(edited, runs))
    assert "~5 s  changed since the last run: beta 0.2 -> 0.3; top_k 0 -> 5\n" in lines
    assert (
        "    train                to run  ~5 s  changed since the last run: lambda 1.0 -> 0.5\n"
        in lines
    )
    assert "    answers for gsm8k    to run  ~5 s  follows from train\n" in lines
    assert "      train              to run  ~5 s  follows from bash: train\n" in lines
    narrow = tree(edited, runs, width=60)
    assert max(map(len, narrow)) <= 60
    assert " ".join(" ".join(narrow).split()) == " ".join(lines.split())


def test_a_recipe_without_steps_has_a_plan(recipe_dict, plan_of, runs):
    recipe_dict |= {"stages": {"base": {"method": "base"}}, "evaluate": []}
    assert tree(plan_of(), runs)[0] == "base"


def test_commands_are_listed_with_the_folder_of_each_step(bashrac, recipe_dict, write_recipe):
    path = write_recipe(recipe_dict)
    lines = bashrac("plan", path, "--commands").stdout.splitlines()
    assert len(lines) == 3 * 14 + 2
    for number in range(14):
        step, folder, run = (line.strip() for line in lines[3 * number : 3 * number + 3])
        assert re.fullmatch(rf"{number + 1}  \S+: .+ - to run: new", step)
        config = ROOT / "accelerate_configs" / "cpu.yaml"
        assert run == (
            f"accelerate launch --config_file {config} -m pipeline step {folder}/step.json"
        )
    assert not bashrac("plan", path).stdout.count("accelerate launch")


def test_a_narrow_terminal_has_reasons_below_the_steps(plan_of, runs):
    plan = plan_of()
    changes.remember(plan, runs)
    lines = tree(plan_of("stages.bash.beta=0.3"), runs, width=45)
    at = lines.index("    contexts             to run")
    assert lines[at + 1 : at + 3] == [
        "      changed since the last run: beta 0.2 ->", "      0.3",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 45


def test_a_step_that_another_shell_runs_is_not_said_to_have_been_stopped(plan_of, runs):
    """It has left rows and progress, as a stopped one has; its lock tells them apart."""
    plan = plan_of()
    step = plan.steps[4]
    folder = write_spec(step, runs, processes=1, use_cpu=True).parent
    artifact.write_json(folder / artifact.PROGRESS, {"done": 3, "total": 6, "left": 70.0})
    (folder / "shards").mkdir()
    (folder / "shards" / "0.jsonl").write_text("")
    with lock.held(folder):
        lines = tree(plan, runs)
        listed = tree(plan, runs, commands=True)
    by = f"by process {os.getpid()} on "
    assert any(line.startswith(f"    contexts             running  ~1 min 10 s  {by}")
               for line in lines)  # fmt: skip
    assert f"  5  bash: contexts - running: {by}" in "\n".join(listed)
    assert lines[-1].startswith("14 steps: 0 done, 1 running, 13 to run, about 1 min 10 s")
    assert "it was stopped midway and resumes from there" in "\n".join(tree(plan, runs))


# --- bashrac status -----------------------------------------------------------------------------


def test_before_anything_has_run_it_says_how_to(plan_of, runs):
    assert told(plan_of(), runs).splitlines() == [
        "tiny     0 of 14 steps done",
        "running  nothing; `bashrac run tiny.yaml` runs the rest",
        "left     14 steps",
        "log      none yet",
        "report   none yet; `bashrac report tiny.yaml` prints one of what is finished",
    ]


def test_a_running_step_is_shown_with_progress_holder_and_what_is_left(plan_of, runs):
    """70 s of the running step, and 5 s for each later step that is like one of the finished."""
    plan = plan_of()
    for step in plan.steps[:4]:
        finish(step, runs, 5.0)
    step = plan.steps[4]
    folder = write_spec(step, runs, processes=1, use_cpu=True).parent
    progress = {"done": 24, "total": 48, "unit": "rows", "left": 70.0, "seconds": 65.0}
    artifact.write_json(folder / artifact.PROGRESS, progress)
    log = runs / "tiny" / "logs" / "bash-seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("said\n")
    with lock.held(folder):
        head, running, by, left, logs, report = told(plan, runs).splitlines()
    assert head == "tiny     4 of 14 steps done"
    assert running == (
        "running  bash, contexts: 24 of 48 rows, 1 min 05 s so far, about 1 min 10 s left"
    )
    assert re.fullmatch(rf" {{9}}by process {os.getpid()} on \S+, since \d\d:\d\d", by)
    assert left == "left     10 steps, about 1 min 40 s for 7 of them"
    assert logs == f"log      {log}; `bashrac logs tiny.yaml` prints its end"
    assert report.startswith("report   none yet")


def test_a_run_whose_process_has_not_reached_its_step_is_starting(plan_of, runs):
    """It holds its log, as `run` does from before its process imports torch."""
    plan = plan_of()
    log = runs / "tiny" / "logs" / "sft-seed0.log"
    log.parent.mkdir(parents=True)
    with log.open("a+") as output:
        fcntl.flock(output, fcntl.LOCK_SH)
        line = told(plan, runs).splitlines()[1]
        assert line == "running  a run is starting: its process is importing torch and TRL"
    assert told(plan, runs).splitlines()[1].startswith("running  nothing; ")


def test_it_wraps_at_the_width_of_a_terminal(plan_of, runs):
    assert told(plan_of(), runs, width=60).splitlines()[-2:] == [
        "report   none yet; `bashrac report tiny.yaml` prints one of",
        "         what is finished",
    ]


def test_stopped_and_failed_steps_are_told_apart(plan_of, runs):
    plan = plan_of()
    stopped, failed = (write_spec(step, runs, processes=1, use_cpu=True).parent
                       for step in plan.steps[:2])  # fmt: skip
    progress = {"done": 3, "total": 12, "unit": "rows", "left": 9.0, "seconds": 3.0}
    artifact.write_json(stopped / artifact.PROGRESS, progress)
    artifact.write_json(failed / artifact.ERROR, {"message": "out of \x1b[31mmemory"})
    lines = told(plan, runs).splitlines()
    assert "stopped  sft, overlap with gsm8k: 3 of 12 rows" in lines
    assert "failed   sft, train: out of \\x1b[31mmemory" in lines
    assert "running  nothing; `bashrac run tiny.yaml` runs the rest" in lines


def test_a_step_that_all_seeds_share_is_called_that_of_none(plan_of, runs):
    plan = plan_of("seeds=[0, 1]")
    for step in plan.steps[:2]:
        folder = write_spec(step, runs, processes=1, use_cpu=True).parent
        artifact.write_json(folder / artifact.PROGRESS, {"done": 3, "total": 9, "unit": "rows"})
    lines = told(plan, runs).splitlines()
    assert "stopped  sft, overlap with gsm8k: 3 of 9 rows" in lines
    assert "stopped  sft (seed 0), train: 3 of 9 rows" in lines
    listed = explain(plan, runs, read_launch("cpu"), commands=True)
    assert "  1  sft: overlap with gsm8k - " in listed and "  2  sft, seed 0: train - " in listed


def test_one_seed_only(plan_of, runs, bashrac, write_recipe, recipe_dict):
    plan = plan_of("seeds=[0, 1]")
    assert told(plan, runs, seed=1).startswith("tiny     0 of 14 steps done"), "and the overlap"
    done = bashrac("status", write_recipe(recipe_dict), "--seed", "7")
    assert done.returncode == 2 and "tiny has no seed 7; seeds: 0\n" in done.stderr


def test_a_finished_run_shows_its_report(plan_of, runs):
    plan = plan_of()
    for step in plan.steps:
        finish(step, runs, 1.0)
    page = runs / "tiny" / "report.html"
    page.parent.mkdir()
    page.write_text("")
    assert told(plan, runs).splitlines() == [
        "tiny    14 of 14 steps done", "log     none yet", f"report  {page}",
    ]  # fmt: skip
    (plan.steps[-1].directory(runs) / "record.json").unlink()
    assert told(plan, runs).endswith(f"{page}, of an earlier run")


def test_commands_that_it_names_hold_the_terms_it_was_asked_with(
    bashrac, write_recipe, recipe_dict
):
    path = write_recipe(recipe_dict)
    given = ("--set", "stages.bash.beta=0.3", "--runs", "else where")
    done = bashrac("status", path, *given)
    assert f"`bashrac run {path} --set stages.bash.beta=0.3 --runs 'else where'`" in done.stdout
