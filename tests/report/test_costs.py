"""What stages cost, from records written to disk: own steps, chains, hours and money."""

import csv
import io

import pytest

from eval.report.collect import collect, part_of
from eval.report.cost_summary import bill_note, chain_table, own_table
from eval.report.data import csv_text
from eval.report.markdown import markdown
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import artifact

SECONDS = {"train": 100.0, "contexts": 50.0, "answers": 10.0, "gsm8k": 1.0, "overlap": 0.5}


@pytest.fixture
def recorded(recipe_dict, write_recipe, tmp_path):
    """Write a record of every step, or of those of some seeds; returns (plan, runs)."""

    def write(*, device="cpu (x86_64, 2 cores)", processes=1, seeds=(0,), of=None, **change):
        plan = make_plan(load_recipe(write_recipe(recipe_dict | change | {"seeds": list(seeds)})))
        runs = tmp_path / "runs"
        for step in plan.steps:
            if of is not None and step.seed not in of:
                continue
            metrics = {"tokens_trained": 1000} if step.kind == "train" else {"tokens_generated": 7}
            if step.kind == "gsm8k":
                scores = {
                    "value": 50.0,
                    "low": 0.0,
                    "high": 100.0,
                    "n": 2,
                    "unit": "%",
                    "scores": [0, 1],
                }
                result = {"benchmark": "gsm8k", "primary": "strict", "n": 2, "ids": [0, 1],
                          "measures": {"strict": scores}, "counts": {"correct": 1, "wrong": 1}}  # fmt: skip
                artifact.write_json(step.directory(runs) / artifact.RESULT, result)
            elif step.kind == "overlap":
                found = dict.fromkeys(("items", "prompts", "references", "short"), 0)
                found |= {"n": 2, "ngram": 13, "training_rows": 6}
                artifact.write_json(step.directory(runs) / artifact.RESULT, found)
            artifact.write_record(
                step.directory(runs),
                {
                    "seconds": SECONDS[step.kind] * (1 + step.seed), "metrics": metrics,
                    "device": device, "processes": processes, "host": "here", "versions": {},
                    "peak_memory_bytes": 2_000_000_000 + step.seed, "git_commit": "abc",
                    "files": artifact.written_files(step.directory(runs)),
                },
            )  # fmt: skip
        return plan, runs

    return write


def test_a_chain_holds_the_stages_it_starts_from_each_once(recorded):
    """sft 100 s; bash: contexts 50, train 100; DPO 100 on either: 2, 2.5 and 3.5 times sft."""
    plan, runs = recorded()
    costs = {cost.stage: cost for cost in collect(plan, runs).costs}
    assert {name: cost.seconds for name, cost in costs.items()} == {
        "sft": 100, "bash": 150, "sft-dpo": 100, "bash-dpo": 100,
    }  # fmt: skip
    assert {name: cost.chain.seconds for name, cost in costs.items()} == {
        "sft": 100, "bash": 250, "sft-dpo": 200, "bash-dpo": 350,
    }  # fmt: skip
    assert {name: cost.times for name, cost in costs.items()} == {
        "sft": 1, "bash": 2.5, "sft-dpo": 2, "bash-dpo": 3.5,
    }  # fmt: skip
    spent = costs["bash-dpo"].chain
    assert (spent.tokens_trained, spent.tokens_generated) == (3000, 7)


def test_the_bill_counts_every_step_once_and_evaluation_apart(recorded):
    """Training 100 + 150 + 100 + 100; four evaluations of 11 s and an overlap of half a second."""
    plan, runs = recorded()
    bill = collect(plan, runs).bill
    assert (bill.training.seconds, bill.evaluation.seconds) == (450, 44.5)
    assert (bill.device, bill.training.device_seconds) == ("machine", 450)


def test_costs_are_means_over_the_seeds_that_are_finished(recorded):
    """Seed 1 takes twice as long, seed 2 has not run: (100 + 200) / 2."""
    plan, runs = recorded(seeds=(0, 1, 2), of=(0, 1))
    cost = collect(plan, runs).costs[0]
    assert (cost.seconds, cost.peak_memory, cost.times) == (150, 2_000_000_001, 1)


def test_a_swept_baseline_is_that_of_the_stage_itself(recorded):
    """Every bash starts from an SFT of its own learning rate: 250 s over 100 s."""
    plan, runs = recorded(sweep={"stages.sft.trainer.learning_rate": [0.001, 0.01]})
    times = {cost.stage: cost.times for cost in collect(plan, runs).costs}
    assert times["bash@sft.learning_rate=0.01"] == 2.5 and len(times) == 8


def test_a_stage_beside_which_a_swept_baseline_has_several_points_is_said_to_be_alone(recorded):
    plan, runs = recorded(sweep={"stages.bash.beta": [0.1, 0.2]})
    report = collect(plan, runs, baseline="bash")
    (found,) = (item for item in report.warnings.items() if "not compared with bash" in item[0])
    assert found[1] == ["sft", "sft-dpo"] and "--baseline sft or sft-dpo compares all" in found[0]
    assert not any("not compared" in warning for warning in collect(plan, runs).warnings)


def test_the_recipe_that_is_shown_makes_the_same_results(recorded, tmp_path):
    sweep = {"stages.bash.beta": [0.1, 0.2]}
    for change in ({"seeds": [3]}, {"sweep": sweep}, {"system": "Say: #1, {x}\n", "evaluate": []}):
        plan, runs = recorded(seeds=change.pop("seeds", (0,)), of=(), **change)
        file = tmp_path / "shown.yaml"
        file.write_text(collect(plan, runs).made.recipe, encoding="utf-8")
        assert make_plan(load_recipe(file)).fingerprint == plan.fingerprint


def test_hours_of_gpus_count_every_process_and_have_a_price(recorded):
    """bash: 250 s on 4 GPUs are 0.2778 hours, at 3.60 each 1.00."""
    plan, runs = recorded(device="4 x NVIDIA H100", processes=4)
    report = collect(plan, runs, price_per_hour=3.6, currency="EUR")
    head, body = chain_table(report)
    assert head[-2:] == ["GPU-hours", "EUR"]
    assert body[1] == ["bash", "250 s", "2.50", "2,000", "7", "0.28", "1.00"]
    assert bill_note(report.bill) == (
        "All finished steps of these stages, in all seeds, each once: training and row-writing 450 s "
        "(0.50 GPU-hours, 1.80 EUR), evaluation 44 s (0.05 GPU-hours, 0.18 EUR). At 3.6 EUR an hour of a GPU."
    )
    lines = csv.DictReader(io.StringIO(csv_text(report)))
    (money,) = (
        one["value"] for one in lines if (one["stage"], one["measure"]) == ("bash", "price")
    )
    assert float(money) == pytest.approx(1.0)


def test_without_a_price_or_a_gpu_time_is_not_said_twice(recorded):
    plan, runs = recorded(processes=4)
    report = collect(plan, runs)
    assert chain_table(report)[0] == [
        "stage", "time in all", "times sft", "trained in all", "written in all",
    ]  # fmt: skip
    assert own_table(report)[1][1] == ["bash", "150 s", "1,000", "", "7", "2.0 GB"]


def test_quality_against_cost_is_a_chart_with_a_named_point_a_stage(recorded):
    plan, runs = recorded()
    report = collect(plan, runs)
    (chart,) = report.charts
    points = {point.label: point.x for curve in chart.curves for point in curve.points}
    assert points == {"sft": 1, "bash": 2.5, "sft-dpo": 2, "bash-dpo": 3.5}
    assert [curve.name for curve in chart.curves] == ["sft", "bash", "dpo"]
    text = markdown(report)
    assert "### strict against cost" in text and "| wall time, times sft |" in text


def test_the_command_prints_a_price_and_what_makes_the_report_again(recorded, bashrac):
    plan, _ = recorded()
    priced = ("--price-per-hour", "7.2", "--currency", "EUR")
    done = bashrac("report", "recipe.yaml", "--set", "seeds=[0]", *priced)
    lines = done.stdout.splitlines()
    assert "| bash     | 250 s       | 2.50      | 2,000          | 7              | 0.07          | 0.50 |" in lines  # fmt: skip
    assert "- `bashrac run recipe.yaml --set 'seeds=[0]'`" in lines
    assert "- bashrac at commit `abc`" in lines
    assert f"Recipe fingerprint `{plan.fingerprint[:16]}`." in lines
    refused = bashrac("report", "recipe.yaml", "--price-per-hour", "-1")
    assert refused.returncode == 2 and "not a number above 0" in refused.stderr


def test_a_part_without_the_first_stage_has_the_search_for_test_rows_all_the_same(recorded):
    """Answers 10 s, grades 1 s for each of two stages, and the search for test rows 0.5 s."""
    stages = {
        "alone": {"method": "base"},
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
    }
    plan, runs = recorded(stages=stages)
    part = part_of(plan, ["bash"])
    assert list(part.stages) == ["sft", "bash"] and len(part.steps) < len(plan.steps)
    report = collect(part, runs)
    assert report.overlaps == collect(plan, runs).overlaps != {}
    assert report.bill.evaluation.seconds == 2 * 11 + 0.5
