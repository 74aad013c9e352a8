"""The table, from results written to disk as steps write them."""

import csv
import io
import json

import pytest
from scipy.stats import t as t_distribution

from eval.benchmarks.gsm8k import grade_answers
from eval.report.collect import collect, part_of
from eval.report.data import csv_text, json_text
from eval.report.headlines import headlines
from eval.report.markdown import markdown
from eval.report.plots import format_ticks, plots_of
from eval.report.text import format_cell, format_difference, format_number
from eval.report.types import Cell, Difference
from pipeline.cli.main import main
from pipeline.errors import InputError
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, write_spec

RECORD = {
    "seconds": 10.0,
    "metrics": {"tokens_trained": 1000, "padding_share": 0.2},
    "device": "cpu",
    "host": "here",
    "versions": {"trl": "1.16.0"},
    "files": {},
}


@pytest.fixture
def finished(recipe_dict, write_recipe, tmp_path):
    """Write results for stages: {stage: {seed: scores}}; returns (plan, runs)."""

    def finish(scores, **change):
        recipe_dict["stages"] = {
            "sft": {"method": "sft"},
            "bash": {"method": "bash", "from": "sft"},
        }
        plan = make_plan(load_recipe(write_recipe(recipe_dict | change)))
        runs = tmp_path / "runs"
        for (stage, _, seed), step in plan.results.items():
            if seed not in scores.get(stage, {}):
                continue
            # 1 is a right answer, 0 a wrong one, None one that was cut off before its number.
            texts = {1: "#### 7", 0: "#### 8", None: "Seven plus"}
            samples = [
                {
                    "id": i,
                    "answer": texts[score],
                    "reference": "#### 7",
                    "finished": score is not None,
                }
                for i, score in enumerate(scores[stage][seed])
            ]
            answers = step.inputs["answers"].directory(runs)
            artifact.write_rows(answers / artifact.SAMPLES, samples)
            grade_answers(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
            for done in [*plan.stage_steps[stage, seed], step]:
                artifact.write_record(done.directory(runs), RECORD)
        return plan, runs

    return finish


def test_a_recipe_says_what_stages_are_compared_with_and_a_report_may_differ(finished):
    scores = {"sft": {0: [1, 1, 0, 0]}, "bash": {0: [1, 1, 1, 1]}}
    plan, runs = finished(scores, baseline="bash")
    report = collect(plan, runs)
    assert report.baseline == "bash" and report.rows[0].difference.value == -50.0
    other = collect(plan, runs, baseline="sft")
    assert other.rows[0].difference is None and other.rows[1].difference.value == 50.0


def test_a_report_of_some_stages_shows_what_they_start_from_and_the_baseline_too(finished):
    plan, runs = finished({"sft": {0: [1, 0]}, "bash": {0: [1, 1]}})
    whole = collect(plan, runs)

    def shown(*stages, baseline=None):
        report = collect(part_of(plan, stages, baseline), runs, baseline=baseline)
        assert report.made.fingerprint == whole.made.fingerprint, "the results are the recipe's"
        assert [one.stage for one in report.costs] == [row.stage for row in report.rows]
        return [row.stage for row in report.rows], len(report.made.steps)

    everything = len(whole.made.steps)
    assert shown("bash") == (["sft", "bash"], everything)
    assert shown("sft", baseline="bash") == (["sft", "bash"], everything)
    stages, steps = shown("sft")
    assert stages == ["sft"] and 0 < steps < everything
    with pytest.raises(InputError, match="no stage 'bsh'; did you mean bash"):
        shown("bsh")


def test_a_part_of_a_recipe_without_benchmarks_has_its_fingerprint_too(finished):
    plan, _ = finished({}, evaluate=[])
    assert part_of(plan, ["sft"]).fingerprint == plan.fingerprint


def test_a_baseline_shown_beside_an_earlier_stage_brings_what_it_starts_from(finished):
    stages = {
        "sft": {"method": "sft"},
        "bash": {"method": "bash", "from": "sft"},
        "more": {"method": "sft", "from": "bash"},
    }
    plan, runs = finished({name: {0: [1, 0]} for name in stages}, stages=stages)
    report = collect(part_of(plan, ["sft"], "more"), runs, baseline="more")
    assert [row.stage for row in report.rows] == ["sft", "bash", "more"]
    whole = {one.stage: one for one in collect(plan, runs, baseline="more").costs}
    assert {one.stage: one for one in report.costs} == whole and whole["sft"].times == 0.25


def test_a_stage_is_compared_with_sft_on_the_same_examples(finished):
    """sft right on 2 of 8, bash on 6 of 8, 4 gained and none lost: +50 points.

    Bonett and Price: 5 - 1 of 10, variance (6/10 - 0.16) / 9, t with 9 degrees of freedom. McNemar
    exact, 4 discordant pairs all one way: 2 * (1/2)^4 = 0.125. Wilson 6/8: [40.9, 92.9].
    """
    plan, runs = finished(
        {"sft": {0: [1, 1, 0, 0, 0, 0, 0, 0]}, "bash": {0: [1, 1, 1, 1, 1, 1, 0, 0]}}
    )
    report = collect(plan, runs)
    sft, bash = report.rows
    assert (sft.primary.value, sft.difference) == (25.0, None)
    assert list(bash.measures) == ["strict", "flexible", "cut off"]
    wilson = (pytest.approx(40.93, abs=0.01), pytest.approx(92.85, abs=0.01))
    assert bash.primary == Cell(75.0, *wilson, n=8)
    found = bash.difference
    error = (0.44 / 9) ** 0.5
    half = 100 * t_distribution.isf(0.025, 9) * error
    assert (found.value, found.n, found.mcnemar) == (50.0, 8, 0.125)
    assert (found.low, found.high) == pytest.approx((40 - half, 40 + half))
    assert found.p_value == pytest.approx(2 * t_distribution.sf(0.4 / error, 9))
    assert found.verdict == "not significant" and found.compared == 1
    assert sft.measures["cut off"].value == 0 and bash.n == 8
    # bash has two steps of its own, contexts and train, of 10 s each
    costs = [(cost.seconds, cost.tokens_trained) for cost in report.costs]
    assert costs == [(10.0, 1000), (20.0, 2000)]


@pytest.mark.parametrize(
    ("value", "p_value", "p_adjusted", "seeds", "better", "verdict"),
    [
        (3.1, 0.04, None, 2, "higher", "better"),
        (3.1, 0.04, None, 1, "higher", "ahead"),
        (-3.1, 0.04, None, 2, "higher", "worse"),
        (-3.1, 0.04, None, 1, "higher", "behind"),
        (-3.1, 0.04, None, 2, "lower", "better"),
        (3.1, 0.04, 0.05, 2, "higher", "not significant"),
        (3.1, 0.05, None, 1, "higher", "not significant"),
    ],
)
def test_the_verdict_is_that_of_the_adjusted_p_and_one_seed_says_nothing_of_methods(
    value, p_value, p_adjusted, seeds, better, verdict
):
    found = Difference(value, -9, 9, 8, p_value, seeds=seeds, better=better, p_adjusted=p_adjusted)
    assert found.verdict == verdict
    assert format_difference(found, seeds) == f"{value:+.1f} [−9.0, +9.0] {verdict}".replace(
        "-", "−"
    )


def test_arms_are_judged_together(finished):
    """Two arms beside sft: each p is doubled or nearly so (Holm), and both intervals hold at once.

    16 gained of 40 by one, 6 by the other; alone 6 of 40 would be significant.
    """
    n = 40
    scores = {
        "sft": {0: [0] * n},
        "bash": {0: [1] * 16 + [0] * (n - 16)},
        "other": {0: [1] * 6 + [0] * (n - 6)},
    }
    stages = {"sft": {"method": "sft"}, "bash": {"method": "bash", "from": "sft"}}
    alone = {
        name: collect(*finished({"sft": scores["sft"], "bash": scores[name]}, stages=stages))
        for name in ("bash", "other")
    }
    stages["other"] = {"method": "bash", "from": "sft", "seed": 1}
    plan, runs = finished(scores, stages=stages | {"other": {"method": "dpo", "from": "sft"}})
    together = {row.stage: row.difference for row in collect(plan, runs).rows}
    for name in ("bash", "other"):
        (before,) = [row.difference for row in alone[name].rows if row.difference]
        now = together[name]
        assert now.compared == 2 and now.p_value == before.p_value
        assert now.low <= before.low < before.high < now.high
    assert together["bash"].p_adjusted == pytest.approx(2 * together["bash"].p_value)
    assert together["other"].p_adjusted == together["other"].p_value
    assert together["bash"].verdict == together["other"].verdict == "ahead"
    assert together["other"].low == 0, "Holm's second step sees what joint intervals miss"


def test_seeds_that_are_all_wrong_are_not_certain_to_be(finished):
    """Seeds that answer alike are one: Wilson of 0 in 6 reaches 39.0 %."""
    plan, runs = finished({"sft": {0: [0] * 6, 1: [0] * 6}}, seeds=[0, 1])
    cell = collect(plan, runs).rows[0].primary
    assert (cell.value, cell.low, cell.high) == (0.0, 0.0, pytest.approx(39.03, abs=0.01))


def test_a_difference_over_fewer_seeds_says_so(finished):
    plan, runs = finished(
        {"sft": {0: [1, 0, 0]}, "bash": {0: [1, 1, 0], 1: [1, 1, 1]}}, seeds=[0, 1]
    )
    report = collect(plan, runs)
    assert report.rows[1].difference.seeds == 1
    assert "not significant (1 of 2 seeds)" in markdown(report)


def test_the_report_says_what_was_asked(finished):
    plan, runs = finished({"sft": {0: [1, 0]}})
    text = markdown(collect(plan, runs))
    assert "Evaluated on rows of builtin:maths, the first 4; greedy, at most 8 tokens." in text


def test_every_example_has_one_outcome_and_all_are_shown(finished):
    plan, runs = finished({"sft": {0: [1, 0, None, None]}})
    (row, _) = collect(plan, runs).rows
    assert row.counts == {"correct": 1, "wrong": 1, "unparsed": 0, "truncated": 2, "errored": 0}
    assert "1 correct, 1 wrong, 2 truncated" in markdown(collect(plan, runs))
    assert row.measures["cut off"].value == 50.0


def test_where_lower_is_better_a_fall_is_better_and_no_loss_is_a_percentage(finished):
    """sft loses 1.5 nats more on every row: +1.5, in nats and not times 100."""
    from eval.benchmarks.results import measure

    plan, runs = finished({"sft": {0: [1, 0, 1] * 2}, "bash": {0: [1, 1, 0] * 2}})
    for stage, losses in (("sft", [2.25, 3.5, 4.75] * 2), ("bash", [0.75, 2.0, 3.25] * 2)):
        file = plan.results[stage, "gsm8k", 0].directory(runs) / artifact.RESULT
        found = measure(losses, unit="nats", better="lower")
        result = artifact.read_json(file) | {"primary": "loss", "measures": {"loss": found}}
        artifact.write_json(file, result)
    report = collect(plan, runs)
    _, bash = report.rows
    assert (bash.primary.value, bash.primary.unit, bash.primary.better) == (2.0, "nats", "lower")
    difference = bash.difference
    assert (difference.value, difference.low, difference.high) == (-1.5, -1.5, -1.5)
    assert (difference.verdict, difference.unit, difference.better) == ("ahead", "nats", "lower")
    worse = collect(plan, runs, baseline="bash").rows[0].difference
    assert (worse.value, worse.verdict) == (1.5, "behind")
    text = markdown(report)
    assert "2.000 nats [" in text and "−1.500 [−1.500, −1.500] ahead" in text
    assert {row["better"] for row in csv.DictReader(io.StringIO(csv_text(report)))} >= {"lower"}
    (headline,) = headlines(report, "gsm8k")
    assert headline.sentence == "−1.500 nats [−1.500, −1.500]"
    assert headline.verdict == "ahead (p = 0.031, lower is better)"


@pytest.mark.parametrize("signed", [False, True])
def test_what_rounds_to_zero_has_no_minus_sign(signed):
    sign = "+" if signed else ""
    assert format_number(-0.04, "%", signed=signed) == f"{sign}0.0"
    assert format_number(-0.0004, "nats", signed=signed) == f"{sign}0.000"
    assert format_number(-0.0, "tokens", signed=signed) == f"{sign}0.0"
    assert format_number(-0.06, "%", signed=signed) == "\u22120.1"
    assert format_difference(Difference(-0.04, -0.049, 0.04, 9, 1.0)).startswith(
        "+0.0 [+0.0, +0.0]"
    )
    assert format_ticks([-0.5, -0.0, 0.5], signed) == ["\u22120.5", "0.0", f"{sign}0.5"]


def test_a_difference_whose_interval_holds_0_is_called_not_significant(finished):
    plan, runs = finished({"sft": {0: [1, 0, 1, 0]}, "bash": {0: [0, 1, 1, 0]}})
    text = markdown(collect(plan, runs))
    line = next(line for line in text.splitlines() if line.startswith("| bash"))
    assert "+0.0 [" in line and "not significant" in line


def test_seeds_are_averaged_and_paired_seed_by_seed(finished):
    plan, runs = finished(
        {"sft": {0: [1, 0, 0, 0], 1: [1, 1, 0, 0]}, "bash": {0: [1, 1, 0, 0], 1: [1, 1, 1, 0]}},
        seeds=[0, 1],
    )
    sft, bash = collect(plan, runs).rows
    assert (sft.seeds, sft.primary.value, bash.primary.value) == (2, 37.5, 62.5)
    # Each gains one of four, another one. With one more won and lost: (1/2, 1/2, 0, 0, 1, -1) is the
    # examples' part, 2.5 - 6/36 over 5 and 6; the seeds are alike.
    p_value = 2 * t_distribution.sf((1 / 6) / ((2.5 - 1 / 6) / 5 / 6) ** 0.5, 5)
    assert (bash.difference.value, bash.difference.p_value) == (25.0, pytest.approx(p_value))
    assert bash.primary.low <= 62.5 <= bash.primary.high
    # Means 50 and 75: the sample standard deviation of two numbers 25 apart.
    assert bash.primary.spread == pytest.approx(25 / 2**0.5)
    assert "62.5 ± 17.7 % [" in markdown(collect(plan, runs))


def test_how_intervals_were_made_is_said_of_the_seeds_that_are_finished(finished):
    scores = {"sft": {0: [1, 0, 0, 0]}, "bash": {0: [1, 1, 0, 0]}}
    plan, runs = finished(scores, seeds=[0, 1])
    text = markdown(collect(plan, runs))
    assert "no method is called better" in text and "±" not in text
    plan, runs = finished(
        {name: one | {1: [1, 1, 0, 0]} for name, one in scores.items()}, seeds=[0, 1]
    )
    text = markdown(collect(plan, runs))
    assert "over seeds and examples" in text and "no method" not in text


def test_an_unfinished_stage_is_said_to_be_so_and_never_0(finished):
    plan, runs = finished({"sft": {0: [1, 0]}})
    report = collect(plan, runs)
    assert report.rows[1].primary is None
    line = next(line for line in markdown(report).splitlines() if line.startswith("| bash"))
    assert "not finished" in line and "%" not in line


def test_published_numbers_keep_their_star(finished):
    plan, runs = finished({"sft": {0: [1, 0]}}, published={"sft": {"gsm8k": "56.76*"}})
    text = markdown(collect(plan, runs))
    assert "56.76*" in text and "quoted by a third party" in text


def test_csv_and_json_hold_the_same_rows(finished):
    plan, runs = finished({"sft": {0: [1, 0, 0]}, "bash": {0: [1, 1, 0]}})
    report = collect(plan, runs)
    rows = list(csv.DictReader(io.StringIO(csv_text(report))))
    saved = json.loads(json_text(report))
    strict = {row["stage"]: float(row["value"]) for row in rows if row["measure"] == "strict"}
    ours = {row["stage"]: row["measures"]["strict"]["value"] for row in saved["rows"]}
    assert strict == ours == {"sft": pytest.approx(100 / 3), "bash": pytest.approx(200 / 3)}
    trained = {row["stage"]: row["value"] for row in rows if row["measure"] == "tokens trained"}
    assert trained == {"sft": "1000", "bash": "2000"}


def test_each_seed_s_number_is_in_json_and_programs_get_ascii_numbers(finished):
    scores = {"sft": {0: [1, 1, 0, 0], 1: [1, 0, 0, 0]}, "bash": {0: [0, 0, 0, 0], 1: [0, 0, 0, 1]}}
    plan, runs = finished(scores, seeds=[0, 1])
    report = collect(plan, runs)
    saved = json.loads(json_text(report))
    assert [row["measures"]["strict"]["per_seed"] for row in saved["rows"]] == [[50, 25], [0, 25]]
    assert "per_seed" not in csv_text(report) and "−" not in csv_text(report) + json_text(report)
    assert "| −25.0 [" in markdown(report)


def test_a_recipe_without_benchmarks_has_a_table_of_costs(finished):
    plan, runs = finished({}, evaluate=[])
    (step,) = plan.stage_steps["sft", 0]
    record = {"seconds": 10.0, "metrics": {"tokens_trained": 1000, "padding_share": 0.2}, "device": "cpu", "host": "here",
              "versions": {}, "files": {}}  # fmt: skip
    artifact.write_record(step.directory(runs), record)
    lines = markdown(collect(plan, runs)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    head = ["stage", "time", "tokens trained", "padding", "tokens written", "peak memory"]
    assert cells[0] == head
    assert cells[2:4] == [
        ["sft", "10 s", "1,000", "20.0 %", "0", ""],
        ["bash", "not finished", "", "", "", ""],
    ]
    assert cells[4] == ["stage", "time in all", "times sft", "trained in all", "written in all"]
    assert cells[6:] == [
        ["sft", "10 s", "1.00", "1,000", "0"],
        ["bash", "not finished", "", "", ""],
    ]
    assert not any("GSM8K" in line or "bootstrap" in line for line in lines)


def test_a_step_that_stages_share_is_each_of_theirs(finished):
    stages = {
        "sft": {"method": "sft"},
        "rac": {"method": "rac", "from": "sft"},
        "spin": {"method": "spin", "from": "sft"},
    }
    plan, runs = finished({name: {0: [1, 0]} for name in stages}, stages=stages)
    of_rac, of_spin = ({s.fingerprint: s for s in plan.stage_steps[x, 0]} for x in ("rac", "spin"))
    (shared,) = [of_rac[one] for one in of_rac.keys() & of_spin.keys()]
    said = {"metrics": {"warnings": ["answers were cut"], "figures": {"rows": 5}}}
    artifact.write_record(shared.directory(runs), RECORD | said)
    whole, part = collect(plan, runs), collect(part_of(plan, ["spin"]), runs)
    assert whole.warnings == {"answers were cut": ["rac", "spin"]}
    assert [one.stage for one in whole.rounds] == ["rac"]
    assert part.warnings == {"answers were cut": ["spin"]}
    assert [one.stage for one in part.rounds] == ["spin"], "a stage that is shown"


def test_rounds_and_warnings_stand_below_the_table(finished):
    plan, runs = finished({"sft": {0: [1, 0]}, "bash": {0: [1, 1]}})
    contexts = next(step for step in plan.steps if step.kind == "contexts")
    record = artifact.read_record(contexts.directory(runs))
    record["metrics"] |= {
        "figures": {"rows": 1234, "differ from the reference": 0.0271},
        "warnings": ["3 of 9 rows dropped"],
    }
    artifact.write_record(contexts.directory(runs), record)
    report = collect(plan, runs)
    lines = markdown(report).splitlines()
    head = lines.index("## Self-generated rows: contexts")
    assert [cell.strip() for cell in lines[head + 2].split("|")[1:-1]] == [
        "stage", "seed", "rows", "differ from the reference",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[head + 4].split("|")[1:-1]] == [
        "bash",
        "0",
        "1,234",
        "2.7 %",
    ]
    assert lines[-1] == "- bash: 3 of 9 rows dropped"
    assert json.loads(json_text(report))["rounds"][0]["figures"]["rows"] == 1234


# --- judged benchmarks --------------------------------------------------------------------------


@pytest.fixture
def judged(recipe_dict, write_recipe, tmp_path):
    """Write AlpacaEval results as its grading does: {stage: {seed: preferences in [0, 1]}}."""

    def finish(preferences, *, controlled=(), ids=None, **change):
        from eval.stats.measures import measure, replicated
        from eval.stats.types import Interval

        files = {"data": str(_outputs(tmp_path)), "difficulty": None, "gamed": None}
        recipe = recipe_dict | {
            "stages": {"sft": {"method": "sft"}, "bash": {"method": "bash"}},
            "evaluate": ["alpaca"],
            "judge": "reference",
            "benchmarks": {"alpaca": files},
        }
        plan = make_plan(load_recipe(write_recipe(recipe | change)))
        runs = tmp_path / "runs"
        for stage, per_seed in preferences.items():
            for seed, scores in per_seed.items():
                step = plan.results[stage, "alpaca", seed]
                measures = {"win rate": measure(scores)}
                if (stage, seed) in controlled:
                    value, replicates = controlled[stage, seed]
                    lc = replicated(
                        value, Interval(min(replicates), max(replicates)), 4, replicates
                    )
                    measures = {"LC win rate": lc, **measures}
                result = {
                    "benchmark": "alpaca",
                    "primary": next(iter(measures)),
                    "n": len(scores),
                    "measures": measures,
                    "counts": {
                        "win": len(scores) - scores.count(None),
                        "errored": scores.count(None),
                    },
                    "ids": ids or list(range(len(scores))),
                }
                artifact.write_json(step.directory(runs) / artifact.RESULT, result)
                artifact.write_record(step.directory(runs), RECORD)
        return plan, runs

    return finish


def _outputs(folder):
    rows = [
        {"dataset": "d", "instruction": f"Say {i}.", "output": "So.", "generator": "baseline"}
        for i in range(4)
    ]
    path = folder / "outputs.json"
    path.write_text(json.dumps(rows))
    return path


def test_an_example_without_a_verdict_is_left_out_of_the_number_and_of_the_difference(judged):
    """sft over rows 0, 1, 2: 0.5; bash over 0, 1, 3: 0.7; both over 0, 1: 0.6 - 0.25 = +35."""
    plan, runs = judged({"sft": {0: [0.25, 0.25, 1.0, None]}, "bash": {0: [0.6, 0.6, None, 0.9]}})
    sft, bash = collect(plan, runs).rows
    assert (sft.primary.value, sft.primary.n, sft.n) == (pytest.approx(50), 3, 4)
    assert (bash.primary.value, bash.primary.n) == (pytest.approx(70), 3)
    assert (bash.difference.value, bash.difference.n) == (pytest.approx(35), 2)
    text = markdown(collect(plan, runs))
    assert "(n 3)" in text and "3 win, 1 errored" in text
    assert "Judge: ROUGE-L with the reference answer" in text and "no judge of quality" in text


def test_stages_without_a_scored_example_in_common_are_not_compared(judged):
    plan, runs = judged({"sft": {0: [0.2, 0.2, None, None]}, "bash": {0: [None, None, 0.4, 0.4]}})
    assert collect(plan, runs).rows[1].difference is None


def test_seeds_without_a_scored_example_in_common_have_no_number(judged):
    halves = {0: [0.2, 0.2, None, None], 1: [None, None, 0.4, 0.4]}
    plan, runs = judged({"sft": halves}, seeds=[0, 1])
    assert collect(plan, runs).rows[0].measures == {}


def test_a_length_controlled_difference_is_that_of_the_same_resamples(judged):
    """The replicates differ by 2, 2, 2 and 3 (variance 1/4) although each scatters by 20."""
    base, ours = [10.0, 20.0, 30.0, 10.0], [12.0, 22.0, 32.0, 13.0]
    plan, runs = judged(
        {"sft": {0: [0.2] * 4}, "bash": {0: [0.4] * 4}},
        controlled={("sft", 0): (18.0, base), ("bash", 0): (20.5, ours)},
    )
    _, bash = collect(plan, runs).rows
    assert list(bash.measures) == ["LC win rate", "win rate"]
    assert bash.difference.value == 2.5
    half = t_distribution.isf(0.025, 3) * 0.5
    assert (bash.difference.low, bash.difference.high) == pytest.approx((2.5 - half, 2.5 + half))


def test_length_controlled_rates_of_several_seeds_are_averaged(judged):
    plan, runs = judged(
        {"sft": {0: [0.2] * 4, 1: [0.2] * 4}, "bash": {0: [0.4] * 4, 1: [0.4] * 4}},
        controlled={
            ("sft", 0): (10.0, [9.0, 11.0] * 99), ("sft", 1): (12.0, [11.0, 13.0] * 99),
            ("bash", 0): (20.0, [19.0, 21.0] * 99), ("bash", 1): (26.0, [25.0, 27.0] * 99),
        },
        seeds=[0, 1],
    )  # fmt: skip
    _, bash = collect(plan, runs).rows
    assert (bash.primary.value, bash.primary.spread) == (23.0, pytest.approx(18**0.5))
    # Seeds differ by 10 and by 14 points on every resample.
    assert bash.difference.value == 12
    assert bash.difference.high == pytest.approx(12 + 2 * t_distribution.isf(0.025, 1))

    assert bash.difference.p_value == pytest.approx(2 * t_distribution.sf(12 / 2, 1))
    assert bash.difference.verdict == "not significant", "two seeds that differ by 4 say little"


@pytest.mark.parametrize("lacking", ["sft", "bash"])
def test_where_the_own_number_is_missing_none_takes_its_place(judged, lacking):
    other = {"sft": "bash", "bash": "sft"}[lacking]
    plan, runs = judged(
        {"sft": {0: [0.2] * 4}, "bash": {0: [0.4] * 4}},
        controlled={(other, 0): (20.5, [20.0, 21.0])},
    )
    report = collect(plan, runs)
    rows = {row.stage: row for row in report.rows}
    assert rows[lacking].primary is None and rows["bash"].difference is None
    assert list(rows[other].measures) == ["LC win rate", "win rate"]
    text = markdown(report)
    head = next(line for line in text.splitlines() if line.startswith("| stage "))
    assert [cell.strip() for cell in head.split("|")][2:4] == ["LC win rate", "win rate"]
    line = next(line for line in text.splitlines() if line.startswith(f"| {lacking} "))
    assert "| no LC win rate " in line and "0.0 % [" in line
    value, difference = plots_of("alpaca", report.rows, "sft") * 2
    assert value == difference and value.title == "LC win rate, %"
    marks = {mark.label[0][0]: mark for mark in value.marks}
    assert marks[lacking].places is None and marks[lacking].words == "no LC win rate"


def test_a_number_that_one_of_two_finished_seeds_has_says_so(judged):
    plan, runs = judged(
        {"sft": {0: [0.2] * 4, 1: [0.2] * 4}},
        controlled={("sft", 0): (10.0, [9.0, 11.0])},
        seeds=[0, 1],
    )
    report = collect(plan, runs)
    assert report.rows[0].seeds == 2 and report.rows[0].primary.seeds == 1
    line = next(line for line in markdown(report).splitlines() if line.startswith("| sft "))
    assert "10.0 % [9.0, 11.0] (1 of 2 seeds)" in line
    rows = {one["measure"]: one["seeds"] for one in csv.DictReader(io.StringIO(csv_text(report)))}
    assert (rows["LC win rate"], rows["win rate"]) == ("1", "2")


def test_a_number_over_fewer_examples_says_so():
    assert format_cell(Cell(50.0, 40.0, 60.0, n=98), 100) == "50.0 % [40.0, 60.0] (n 98)"
    some = Cell(50.0, 40.0, 60.0, 98, spread=2.0, seeds=2)
    assert format_cell(some, 100, 3) == "50.0 ± 2.0 % [40.0, 60.0] (n 98, 2 of 3 seeds)"
    assert format_cell(Cell(812.3, 800.0, 820.0, 100, "characters"), 100) == (
        "812.3 characters [800.0, 820.0]"
    )


def test_a_baseline_that_is_no_stage_is_an_error_with_the_nearest_stage(tmp_path, capsys):
    given = ["report", "study-maths", "--runs", str(tmp_path), "--baseline", "sft-mor"]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert (
        "--baseline sft-mor: no such stage; did you mean sft-more?; stages: sft, sft-more" in said
    )


def test_a_report_of_nothing_says_where_it_looked(tmp_path, capsys):
    assert main(["report", "demo", "--runs", str(tmp_path / "rnus")]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"nothing of this report is finished under {tmp_path / 'rnus'}; ")
    assert main(["report", "demo", "--currency", "EUR"]) == 2
    assert "give --price-per-hour too" in capsys.readouterr().err
