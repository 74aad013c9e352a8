"""gap: what a model loses on its own tokens, against plain passes and hand computations."""

import json
import math
import statistics

import numpy as np
import pytest
import torch
import yaml
from conftest import problems_of
from scipy.stats import ttest_1samp

from eval.benchmarks.gap import LOSSES, labels_of
from eval.graders.gap import agreement, is_reference, slope, thirds
from eval.report.collect import collect
from eval.report.curves import gap_charts
from eval.report.markdown import markdown
from pipeline.data.builtin.rows import builtin_rows
from pipeline.estimate.tokens import Workload
from pipeline.models.load import load_model
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.rows import shards
from pipeline.rows.contexts import replaced_positions
from pipeline.rows.stored import ROWS
from pipeline.run.scheduler import select_steps
from pipeline.run.worker import execute
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, write_spec
from pipeline.steps.spec import StepSpec

RATES = [0.0, 0.02, 0.3, 1.0]


@pytest.fixture(scope="module")
def gap_recipe(tiny_model):
    """A model as it is, and the same after two steps at a rate that changes it, for two seeds."""
    return {
        "name": "gaps",
        "task": "gsm8k",
        "model": tiny_model,
        "data": {
            "train": {"source": "builtin:maths", "limit": 6},
            "test": {"source": "builtin:maths", "limit": 4},
        },
        "seeds": [0, 1],
        "launch": "cpu",
        "batch_size": 2,
        "trainer": {
            "learning_rate": 0.05,
            "max_steps": 2,
            "max_length": 256,
            "bf16": False,
            "train_sampling_strategy": "random",  # so that seeds differ
        },
        "generation": {"max_new_tokens": 8, "batch_tokens": 600, "dtype": "float32"},
        "stages": {"base": {"method": "base"}, "sft": {"method": "sft"}},
        "evaluate": ["gsm8k", "gap"],
        "benchmarks": {"gap": {"limit": 3, "rates": RATES}},
    }


@pytest.fixture(scope="module")
def done(gap_recipe, tmp_path_factory):
    """The recipe, run once for all tests that read: (plan, runs)."""
    folder = tmp_path_factory.mktemp("gap")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(gap_recipe))
    plan = make_plan(load_recipe(folder / "recipe.yaml"))
    for step in plan.steps:
        execute(StepContext.read(write_spec(step, folder / "runs", processes=1, use_cpu=True)))
    return plan, folder / "runs"


@pytest.fixture
def plan_of(gap_recipe, write_recipe):
    """The plan of the recipe with other keys."""

    def plan(*overrides):
        return make_plan(load_recipe(write_recipe(gap_recipe), overrides))

    return plan


def step_of(plan, name, stage):
    """The step of an input of a stage's grades."""
    return plan.results[stage, "gap", 0].inputs[name]


def rows_of(plan, runs, name, stage):
    step = step_of(plan, name, stage)
    file = LOSSES if step.kind == "gap-losses" else ROWS
    return artifact.read_rows(step.directory(runs) / file)


def result_of(plan, runs, stage):
    step = plan.results[stage, "gap", 0]
    return artifact.read_json(step.directory(runs) / artifact.RESULT)


def weights_of(plan, runs, stage):
    base = plan.models[stage, 0].base
    return load_model(plan.recipe.model if base is None else str(base.directory(runs))).eval()


# --- the numbers --------------------------------------------------------------------------------


def test_losses_are_those_of_one_plain_forward_pass(done):
    """transformers' own loss of each context, and at rate 0 of the plain row."""
    plan, runs = done
    for stage, name in (("base", "own"), ("base", "fixed"), ("sft", "own")):
        model = weights_of(plan, runs, stage)
        contexts = step_of(plan, name, stage).inputs["contexts"].directory(runs)
        losses = rows_of(plan, runs, name, stage)
        written = artifact.read_rows(contexts / ROWS)
        distinct = {tuple(row["input_ids"]) for row in written}
        assert len(distinct) < len(losses) == 3 * len(RATES), "some are alike at two rates"
        for row, loss in zip(written, losses, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([row["input_ids"]])).logits[0]
            scores = logits.log_softmax(dim=-1)
            places = [place for place, label in enumerate(row["labels"]) if label != -100]
            expected = -sum(scores[at - 1, row["labels"][at]].item() for at in places)
            assert (loss["id"], loss["rate"], loss["tokens"]) == (
                row["id"],
                row["rate"],
                len(places),
            )
            assert loss["nats"] == pytest.approx(expected, rel=1e-4)
            if row["rate"] == 0:
                assert row["input_ids"][places[0] :] == row["labels"][places[0] :]
                whole = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
                with torch.no_grad():
                    mean = model(whole[0], labels=whole[1]).loss.item()
                assert loss["nats"] / len(places) == pytest.approx(mean, rel=1e-4)


def test_a_stages_numbers_are_means_over_rows_and_the_slope_is_polyfits(done):
    plan, runs = done
    losses, result = rows_of(plan, runs, "own", "sft"), result_of(plan, runs, "sft")
    nats = {(row["id"], row["rate"]): row["nats"] / row["tokens"] for row in losses}
    slopes = [np.polyfit(RATES, [nats[i, rate] for rate in RATES], 1)[0] for i in range(3)]
    found = result["measures"]["gap slope"]
    assert found["scores"] == pytest.approx(slopes)
    assert found["low"] <= found["value"] == pytest.approx(statistics.mean(slopes))
    assert found["value"] <= found["high"] and found["low"] < found["high"]
    assert (found["unit"], found["better"], result["primary"]) == ("nats", "lower", "gap slope")
    at_rest = result["measures"]["NLL at 0"]["value"]
    assert at_rest == pytest.approx(statistics.mean(nats[i, 0.0] for i in range(3)))
    points = result["curves"]["own"]["measures"]
    assert points["0.3"]["scores"] == pytest.approx([nats[i, 0.3] for i in range(3)])
    # The line through means is the mean of the lines.
    means = [points[f"{rate:g}"]["value"] for rate in RATES]
    assert slope(RATES, means) == pytest.approx(found["value"])


def test_a_straight_line_has_its_own_slope():
    assert slope([0, 0.5, 1], [2.0, 3.5, 5.0]) == pytest.approx(3.0)
    assert slope([0.0, 0.2, 1.0], [1.0, 1.0, 1.0]) == 0


def test_the_same_places_are_replaced_for_every_model_and_seed_and_more_at_every_rate(done):
    """They follow from (0, row, position); a random model hardly ever samples the reference."""
    plan, runs = done
    before: dict[int, set[int]] = {}
    models = [("base", 0), ("sft", 0), ("sft", 1)]
    assert plan.models[models[1]] != plan.models[models[2]]
    written = [
        artifact.read_rows(
            plan.results[stage, "gap", seed].inputs["contexts"].directory(runs) / ROWS
        )
        for stage, seed in models
    ]
    assert written[0] != written[1] != written[2]
    for rows in zip(*written, strict=True):
        row, reference = rows[0], labels_of(rows[0])
        replaced = replaced_positions(
            reference, row["id"], beta=row["rate"], seed=0, excluded_ids=(0, 1, 2)
        )
        places = set(replaced.nonzero().flatten().tolist())
        for other in rows:
            context = other["input_ids"][-len(reference) :]
            changed = {at for at, token in enumerate(context) if token != reference[at]}
            assert changed <= places and len(changed) >= 0.8 * len(places)
        assert before.get(row["id"], set()) <= places, "rates rise from row to row"
        before[row["id"]] = places
        assert len(places) == (0 if row["rate"] == 0 else pytest.approx(
            row["rate"] * len(reference), abs=0.25 * len(reference)
        ))  # fmt: skip


def test_the_fixed_stage_writes_once_and_for_it_both_curves_are_one(done):
    plan, runs = done
    assert step_of(plan, "own", "sft").fingerprint == step_of(plan, "fixed", "sft").fingerprint
    written = step_of(plan, "contexts", "sft")
    assert step_of(plan, "fixed", "base").inputs["contexts"].fingerprint == written.fingerprint
    first = [step.kind for step in plan.steps if step.seed == 0]
    assert (first.count("gap-contexts"), first.count("gap-losses")) == (2, 3)
    sft, base = result_of(plan, runs, "sft"), result_of(plan, runs, "base")
    assert sft["curves"]["own"] == sft["curves"]["fixed"]
    assert base["curves"]["own"] != base["curves"]["fixed"]
    for name in ("own", "fixed"):  # rate 0 is the reference in both
        assert base["curves"][name]["measures"]["0"] == base["curves"]["own"]["measures"]["0"]


# --- agreement and length -----------------------------------------------------------------------


def test_agreement_ends_with_the_first_other_token():
    assert agreement([5, 6, 7], [5, 6, 7]) == 3
    assert agreement([5, 9, 7], [5, 6, 7]) == 1
    assert agreement([], [5]) == 0
    assert agreement([5, 6], [5, 6, 7]) == 2, "an answer that was cut agreed as far as it went"
    assert agreement([5, 6, 7, 8], [5, 6, 7]) == 3


def test_no_answer_is_a_reference_that_was_cut():
    assert is_reference([5, 6, 2], [5, 6, 2], end=2)
    assert not is_reference([5, 6, 9, 2], [5, 6], end=2), "it agrees as far as the cut"
    assert not is_reference([5, 6], [5, 6], end=2), "both were cut"
    assert not is_reference([5, 7, 2], [5, 6, 2], end=2)


def test_thirds_keep_rows_of_one_length_together():
    lengths = dict(enumerate([5, 9, 5, 7, 12, 30]))
    assert thirds(lengths) == {"5 to 5": {0, 2}, "7 to 9": {1, 3}, "12 to 30": {4, 5}}
    assert thirds(dict.fromkeys(range(4), 8)) == {"8 to 8": {0, 1, 2, 3}}
    assert thirds({3: 2, 4: 1}) == {"1 to 1": {4}, "2 to 2": {3}}
    assert thirds({7: 2}) == {"2 to 2": {7}}


def test_greedy_answers_are_those_of_the_tasks_own_benchmark(done):
    """gsm8k asked four rows and gap reads the first three; its ends are put beside all four."""
    plan, runs = done
    asked = plan.results["sft", "gsm8k", 0].inputs["answers"]
    assert step_of(plan, "answers", "sft").fingerprint == asked.fingerprint
    samples = artifact.read_rows(asked.directory(runs) / artifact.SAMPLES)
    references = {
        row["id"]: [label for label in row["labels"] if label != -100]
        for row in rows_of(plan, runs, "contexts", "sft")
    }
    result = result_of(plan, runs, "sft")
    for row, found in zip(samples[:3], result["measures"]["agrees"]["scores"], strict=True):
        pairs = zip(row["ids"], references[row["id"]], strict=False)
        expected = next(place for place, (a, b) in enumerate(pairs) if a != b)
        assert found == expected
    length = result["curves"]["length"]
    assert length["of"] == "gsm8k strict" and length["ids"] == [0, 1, 2, 3]
    counts = [one["n"] for one in length["measures"].values()]
    assert sum(counts) == 4 and max(counts) <= 2


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ([], True),
        (["benchmarks.gsm8k={data: {source: 'builtin:maths', limit: 2}}"], False),  # too few rows
        (["benchmarks.gsm8k={temperature: 1.0}"], False),
        (["benchmarks.gsm8k={few_shot: 2, shots: 'builtin:maths'}"], False),
        (["benchmarks.gap.max_prompt_length=300"], False),
        (["benchmarks.gap.max_new_tokens=9"], False),
        (["evaluate=[gap, gsm8k]"], True),
        (["evaluate=[gap, rouge]"], True),
        (["evaluate=[gap]"], False),
    ],
)
def test_answers_are_shared_where_they_are_greedy_and_of_the_same_rows(plan_of, change, shared):
    plan = plan_of(*change)
    answers = step_of(plan, "answers", "sft")
    others = [one for one in plan.results if one[1] != "gap" and one[0] == "sft"]
    theirs = {plan.results[one].inputs["answers"].fingerprint for one in others}
    assert (answers.fingerprint in theirs) == shared
    assert answers.options["temperature"] == 0 and "few_shot" not in answers.options


# --- in a recipe --------------------------------------------------------------------------------


def test_what_is_wrong_with_its_keys_is_said_at_once(gap_recipe, write_recipe):
    path = write_recipe(gap_recipe)
    assert (
        "start at 0" in problems_of(path, "benchmarks.gap.rates=[0.1, 0.5]")["benchmarks.gap.rates"]
    )
    assert (
        "increase"
        in problems_of(path, "benchmarks.gap.rates=[0, 0.5, 0.5]")["benchmarks.gap.rates"]
    )
    assert problems_of(path, "benchmarks.gap.rates=[0]").keys() == {"benchmarks.gap.rates"}
    assert problems_of(path, "benchmarks.gap.rates=[0, 1.5]").keys() == {"benchmarks.gap.rates.1"}
    assert problems_of(path, "benchmarks.gap.temperature=0").keys() == {
        "benchmarks.gap.temperature"
    }
    said = problems_of(path, "benchmarks.gap.fixed=stf")["benchmarks.gap.fixed"]
    assert 'no stage "stf"; did you mean sft?' in said and "stages: base, sft; null" in said
    without = gap_recipe | {"data": {"train": "builtin:maths"}, "evaluate": ["gap"]}
    assert "gap needs held-out rows" in problems_of(write_recipe(without))["data.test"]


def test_a_fixed_stage_may_stand_below_those_that_read_it(plan_of):
    """base is evaluated on contexts of sft, which are made first."""
    plan = plan_of()
    places = {step.fingerprint: place for place, step in enumerate(plan.steps)}
    for step in plan.steps:
        read = [
            places[one.fingerprint] for one in step.inputs.values() if isinstance(one, StepSpec)
        ]
        assert all(place < places[step.fingerprint] for place in read)
    without = plan_of("benchmarks.gap.fixed=null")
    assert "fixed" not in without.results["base", "gap", 0].inputs
    kept = {step.fingerprint for step in without.steps}
    assert {step.kind for step in plan.steps if step.fingerprint not in kept} == {
        "gap-losses",
        "gap",
    }


def test_the_stages_of_a_recipe_are_each_made_by_name(plan_of):
    """What base reads of sft is a matter of the stage sft, and the run says so."""
    plan = plan_of()
    assert {step.stage for step in select_steps(plan, ["sft"])} == {"sft"}
    missing = [
        value.stage
        for step in select_steps(plan, ["base"])
        for value in step.inputs.values()
        if isinstance(value, StepSpec) and value not in select_steps(plan, ["base"])
    ]
    assert set(missing) == {"sft"}


def test_rows_survive_a_stop_and_are_those_of_one_go(plan_of, tmp_path, monkeypatch):
    plan = plan_of("evaluate=[gap]")
    steps = [step_of(plan, name, "base") for name in ("contexts", "own")]
    told = shards._with_progress

    def interrupted(*given, **more):
        for number, row in enumerate(told(*given, **more)):
            if number == 4:
                raise KeyboardInterrupt
            yield row

    def run(step, runs):
        execute(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
        (file,) = step.directory(runs).glob("*.jsonl")
        return artifact.read_rows(file)

    for step in steps:
        expected = run(step, tmp_path / "whole")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shards, "_with_progress", interrupted)
            run(step, tmp_path / "stopped")
        (kept,) = step.directory(tmp_path / "stopped").glob("shards/*.jsonl")
        assert len(artifact.read_rows(kept)) == 4
        for row, before in zip(run(step, tmp_path / "stopped"), expected, strict=True):
            assert row.pop("nats", 0) == pytest.approx(before.pop("nats", 0))
            assert row == before


def test_the_estimate_counts_what_is_read_and_written(done):
    """Of rows that are there: exactly what the steps have noted."""
    plan, runs = done
    workload = Workload(plan)
    for name, counted in (("contexts", "tokens_generated"), ("own", "tokens_read")):
        step = step_of(plan, name, "base")
        metrics = artifact.read_record(step.directory(runs))["metrics"]
        work = workload.of(step)
        assert work.timed[0] == metrics[counted] > 0
    assert work.timed[1] == "read" and work.written == work.trained == 0


def test_the_report_has_a_table_and_the_curves_of_all_stages(done):
    plan, runs = done
    plan = make_plan(plan.recipe.model_copy(update={"seeds": [0]}))
    report = collect(plan, runs)
    charts = {chart.name: chart for chart in report.charts}
    own, fixed, length = (charts[f"gap-{name}"] for name in ("own", "fixed", "length"))
    for chart in (own, fixed):
        assert [curve.name for curve in chart.curves] == ["base", "sft"]
        for curve in chart.curves:
            assert [point.x for point in curve.points] == RATES
            for point in curve.points:
                cell = point.cell
                assert cell.low <= cell.value <= cell.high and cell.n == 3
                assert (cell.unit, cell.better) == ("nats", "lower")
    assert own.curves[1] == fixed.curves[1] and own.curves[0] != fixed.curves[0]
    assert length.title == "gsm8k strict by answer length"
    (row,) = [row for row in report.rows if (row.stage, row.benchmark) == ("base", "gap")]
    slopes = {
        stage: result_of(plan, runs, stage)["measures"]["gap slope"]["scores"]
        for stage in ("base", "sft")
    }
    differences = [a - b for a, b in zip(slopes["base"], slopes["sft"], strict=True)]
    assert row.difference.value == pytest.approx(statistics.mean(differences))
    assert row.difference.unit == "nats"
    assert row.difference.p_value == pytest.approx(ttest_1samp(differences, 0).pvalue)
    assert row.measures["agrees"].unit == "tokens" and row.counts == {"read": 3}
    found = row.differences["slope, fixed contexts"].value
    on_fixed = row.measures["slope, fixed contexts"].value
    assert found == pytest.approx(on_fixed - statistics.mean(slopes["sft"]))
    text = markdown(report)
    assert "| slope, fixed contexts vs sft" in text
    assert (
        "rows of builtin:maths, the first 3; contexts at rates 0, 0.02, 0.3, 1, temperature 1"
        in text
    )
    line = next(line for line in text.splitlines() if line.startswith("| base") and "nats" in line)
    value = row.measures["gap slope"].value
    shown = (f"{value:.3f} nats [", f"{row.difference.value:+.3f} [")
    assert all(number.replace("-", "\u2212") in line for number in shown)


def test_where_the_fixed_stage_is_swept_the_chart_says_whose_contexts_are_the_same(done, plan_of):
    plan, runs = done
    results = {0: result_of(plan, runs, "sft")}

    def note(plan):
        charts = gap_charts(plan, {"gap": dict.fromkeys(plan.stages, results)})
        return next(chart.note for chart in charts if chart.name == "gap-fixed")

    assert note(plan).startswith("All stages read the same contexts, written by sft:")
    other = plan_of("sweep={stages.sft.trainer.learning_rate: [1.0e-3, 1.0e-2]}")
    assert "sft wrote at their own point of the sweep" in note(other)


def test_curves_of_several_seeds_hold_their_spread(done):
    plan, runs = done
    chart = next(one for one in collect(plan, runs).charts if one.name == "gap-own")
    results = [
        artifact.read_json(plan.results["sft", "gap", seed].directory(runs) / artifact.RESULT)
        for seed in (0, 1)
    ]
    for point in chart.curves[1].points:
        values = [one["curves"]["own"]["measures"][f"{point.x:g}"]["value"] for one in results]
        assert point.cell.value == pytest.approx(statistics.mean(values))
        assert point.cell.spread == pytest.approx(statistics.stdev(values))
        assert point.cell.spread > 0


def test_a_model_alone_is_its_own_fixed_stage_and_long_rows_are_cut(bashrac, tmp_path, tiny_model):
    """Through the command line; what the rows are is seen from the first."""
    rows = builtin_rows("maths", "test", limit=3)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = bashrac(
        "evaluate", tiny_model, "--benchmark", "gap", "--data", "rows.jsonl", "--launch", "cpu",
        "--set", "trainer.max_length=100", "--set", "generation.max_new_tokens=8",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "contexts at rates 0, 0.1, 0.2, 0.4, 0.6, 0.8, 1" in ran.stdout
    (file,) = tmp_path.glob("runs/steps/gap-contexts-*/rows.jsonl")
    contexts = artifact.read_rows(file)
    assert max(len(row["input_ids"]) for row in contexts) == 100
    metrics = artifact.read_record(file.parent)["metrics"]
    assert "rows cut in the answer at max_length 100" in metrics["warnings"][0]
    figures = metrics["figures"]
    assert figures["rows"] == len({row["id"] for row in contexts}) == 3
    shares = [figures[f"differ at {rate}"] for rate in ("0.1", "0.2", "0.4", "0.6", "0.8", "1")]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1
    assert len(list(tmp_path.glob("runs/steps/gap-losses-*"))) == 1
    (file,) = tmp_path.glob("runs/steps/gap-[0-9a-f]*/result.json")
    result = artifact.read_json(file)
    assert result["curves"]["own"] == result["curves"]["fixed"]
    assert math.isfinite(result["measures"]["gap slope"]["value"])
    wrong = bashrac("evaluate", tiny_model, "--benchmark", "gap", "--launch", "cpu")
    assert wrong.returncode == 2 and "gap compares with the references" in wrong.stderr


def test_a_handed_on_recipe_names_no_fixed_stage_that_it_does_not_hold(
    recipe_dict, write_recipe, tmp_path
):
    from pipeline.publish.portable import portable_recipe
    from pipeline.publish.stage import FinishedStage

    recipe_dict["stages"] |= {"other": {"method": "sft"}}
    recipe_dict |= {"evaluate": ["gap"], "benchmarks": {"gap": {"fixed": "other"}}}
    plan = make_plan(load_recipe(write_recipe(recipe_dict)))
    fixed = {
        stage: yaml.safe_load(portable_recipe(FinishedStage(plan, stage, 0, tmp_path)))[
            "benchmarks"
        ]
        for stage in ("sft", "other")
    }
    assert fixed == {"sft": {"gap": {"fixed": None}}, "other": {"gap": {"fixed": "other"}}}
