"""The HTML report, as text and in a real browser.

Answers are written to disk as the answering step writes them and graded by the real grading steps.
"""

import base64
import hashlib
import html
import itertools
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from eval.report.collect import collect
from eval.report.page import html_page
from eval.report.plots import nice_ticks, plots_of
from eval.report.samples import collect_samples
from eval.report.types import Cell, Chart, Curve, Point
from pipeline.cli.main import main
from pipeline.errors import visible
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.run.worker import execute
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, write_spec

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\n"
    '</div></details><style>*{display:none}</style><a href="https://example.org/">x</a>\n'
    "\x1b[31mred\x1b[0m nul\0 bell\a \u202etxet desrever\u202c \u2066isolated\u2069 \x9b31m\n"
    "{{ 7 * 7 }} {% raw %} &amp; ' \" #### 5"
)
RIGHT, WRONG = "#### {n}\nas asked", "#### 999999999\nas asked"


@pytest.fixture
def finished(recipe_dict, write_recipe, tmp_path):
    """Write answers for stages, {stage: {seed: [answers]}}, and grade them; (report, samples).

    An answer is a text, or True and False for a right and a wrong one.
    """

    def finish(answers, *, count=20, **change):
        recipe_dict["stages"] = {
            "sft": {"method": "sft"},
            "bash": {"method": "bash", "from": "sft"},
        }
        recipe_dict["data"]["test"]["limit"] = max(
            [4, *(len(row) for seeds in answers.values() for row in seeds.values())]
        )
        plan = make_plan(load_recipe(write_recipe(recipe_dict | change)))
        runs = tmp_path / "runs"
        for (stage, _, seed), step in plan.results.items():
            if seed in answers.get(stage, {}) and not artifact.is_finished(step.directory(runs)):
                place = step.inputs["answers"].directory(runs)
                write_samples(place, answers[stage][seed], plan.stages[stage].recipe.data.test.skip)
                for done in [*plan.stage_steps[stage, seed], step.inputs["answers"]]:
                    write_record(done.directory(runs), tokens_trained=1000)
                execute(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
        return collect(plan, runs), collect_samples(plan, runs, count=count)

    return finish


def write_record(directory, **metrics):
    record = {"seconds": 10.0, "metrics": metrics, "device": "cpu", "host": "here"}
    made = {"versions": {"trl": "1.16.0"}, "files": artifact.written_files(directory)}
    artifact.write_record(directory, record | made)


def write_samples(directory, answers, skip=0):
    rows = []
    for row, answer in enumerate(answers):
        number = row + skip
        reference = f"It is {number}.\n#### {number}"
        text = {True: RIGHT.format(n=number), False: WRONG}.get(answer, answer)
        rows.append(
            {
                "id": row, "sample": 0, "messages": [{"role": "user", "content": f"Q {number}?"}],
                "reference": reference, "answer": text, "ids": [1], "finished": row != 1,
            }
        )  # fmt: skip
    artifact.write_rows(directory / artifact.SAMPLES, rows)


class Page(HTMLParser):
    """Tags, attributes and texts, as an HTML parser sees them."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.ids, self.text = [], [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data

    def values(self, name):
        return [value for _, one, value in self.attributes if one == name]


def test_a_page_of_some_stages_shows_no_answer_of_others(
    finished, recipe_dict, write_recipe, tmp_path, capsys
):
    finished({"sft": {0: ["of the first"] * 4}, "bash": {0: ["of the other"] * 4}})
    given = ["report", str(write_recipe(recipe_dict)), "--runs", str(tmp_path / "runs")]
    assert main([*given, "--format", "html", "--stage", "sft"]) == 0
    page = capsys.readouterr().out
    assert "of the first" in page and "of the other" not in page


def page_of(made):
    return html_page(*made)


@pytest.fixture
def usual(finished):
    """Two stages, the second better; one hostile and one long answer; charts of every kind."""
    long = "\n".join(f"line {i} " + "word " * 20 for i in range(60))
    report, samples = finished(
        {
            "sft": {0: [HOSTILE, False, False, False, False, False, False, long]},
            "bash": {0: [True, True, True, True, True, True, False, False]},
        }
    )
    return replace(report, charts=[*report.charts, *charts_of_every_kind()]), samples


def charts_of_every_kind():
    """Ten curves of seven rates, two of a swept number, four of words, and points with names."""
    stages = ["sft", *(f"stage-{i}" for i in range(9))]
    rates, words = [0, 0.1, 0.2, 0.4, 0.6, 0.8, 1], ["1 to 40", "41 to 60", "over 60"]

    def curve(name, places, slope, unit="nats"):
        values = [0.5 + slope * i for i in range(len(places))]
        cells = [Cell(value, value - 0.1, value + 0.2, 8, unit) for value in values]
        return Curve(name, [Point(x, cell) for x, cell in zip(places, cells, strict=True)])

    points = [
        Point(1 + 0.1 * i, Cell(50 + 3 * (i % 4), 47, 64, 8), f"stage-{i}") for i in range(10)
    ]
    return [
        Chart("gap", "gsm8k", "Loss on own contexts",
              "share of reference tokens that the model fills itself",
              "loss of a reference token, nats (lower is better)",
              [curve(name, rates, 0.1 + 0.02 * i) for i, name in enumerate(stages)]),
        Chart("sweep", "gsm8k", "strict against beta", "stages.bash.beta", "strict, %",
              [curve(name, [0.05, 0.1, 0.4], 1.0, "%") for name in ("bash", "rac")], is_log=True),
        Chart("length", "elsewhere", "Accuracy by length", "tokens", "strict, %",
              [curve(name, words, 1.0, "%") for name in stages[:4]]),
        Chart("cost", "gsm8k", "strict against cost", "times sft", "strict, %",
              [Curve("bash", points[:5]), Curve("rac", points[5:])], is_joined=False),
    ]  # fmt: skip


def test_hostile_answers_are_shown_and_do_nothing(usual):
    source = page_of(usual)
    page = Page(source)
    assert not {"script", "img", "iframe", "object", "link", "base", "form"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert "<script>alert(1)</script><img src=x onerror=alert(1)>" in page.text
    assert "{{ 7 * 7 }} {% raw %} &amp; ' \" #### 5" in page.text
    assert r"\x1b[31mred\x1b[0m nul\x00 bell\x07 \u202etxet desrever\u202c" in page.text
    assert r"\u2066isolated\u2069 \x9b31m" in page.text
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", source)


def test_names_and_warnings_are_escaped_too(usual):
    report, samples = usual
    evil = '"><img src=x onerror=alert(1)>\x1b'
    rows = [replace(row, stage=evil, published=evil) for row in report.rows]
    changed = replace(
        report, rows=rows, recipe=evil, model=evil, judge=evil, warnings={evil: [evil]},
        costs=[replace(cost, stage=evil) for cost in report.costs], machines=[evil],
        versions={evil: evil},
    )  # fmt: skip
    page = Page(html_page(changed, samples))
    assert "img" not in page.tags and "onerror" not in {name for _, name, _ in page.attributes}
    assert r'"><img src=x onerror=alert(1)>\x1b' in page.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb", "a\nb"),
        ("a\rb", r"a\x0db"),
        ("\0\x1b\x7f\x85\x9f", r"\x00\x1b\x7f\x85\x9f"),
        ("\u202a\u202e\u2066\u2069\ud800", r"\u202a\u202e\u2066\u2069\ud800"),
        ("שלום \u200f é 猫 👩\u200d🔬 \u2028", "שלום \u200f é 猫 👩\u200d🔬 \u2028"),
    ],
)
def test_only_characters_that_act_become_escapes(text, shown):
    assert visible(text) == shown


def test_the_policy_names_the_one_style_block_by_its_hash(usual):
    source = page_of(usual)
    (style,) = re.findall(r"<style>(.*?)</style>", source, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', source)
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'"
    assert not re.search(r"url\(|@import|https?:", style)


def test_nothing_is_loaded_and_no_style_is_inline(usual):
    page = Page(page_of(usual))
    names = {name for _, name, _ in page.attributes}
    assert not {"style", "src", "srcset", "action", "background", "poster", "data"} & names
    assert not {name for name in names if name.startswith("on")}
    assert all(value.startswith("#") for value in page.values("href"))


def test_links_and_labels_point_at_elements_that_exist_once(usual):
    page = Page(page_of(usual))
    ids = page.values("id")
    wanted = [value[1:] for value in page.values("href")]
    wanted += [one for value in page.values("aria-labelledby") for one in value.split()]
    assert len(ids) == len(set(ids)) and wanted and set(wanted) <= set(ids)


def test_headings_do_not_skip_a_level(usual):
    levels = [int(tag[1]) for tag in Page(page_of(usual)).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_same_results_give_the_same_page(usual):
    assert page_of(usual) == page_of(usual)


def test_verdicts_stand_in_words_and_not_only_in_colour(usual):
    text = Page(page_of(usual)).text
    assert re.search(
        r"bash \+75\.0 points \[\+10\.0, \+100\.0\]: ahead \(p = 0\.024\)",
        text,
    )
    assert "75.0 % [40.9, 92.9]" in text, "Wilson of 6 of 8"
    assert re.search(r"\+75\.0 \[\+10\.0, \+100\.0\] ahead", text)


def test_one_seed_and_what_sentences_share_are_said_above_them(usual):
    text = Page(page_of(usual)).text.replace("\u00a0", " ")
    caveat, title = "One seed compares two models", "paired, n = 8, 1 seed, 95 % intervals"
    assert text.index(caveat) < text.index(title) < text.index("bash +75.0 points")


def test_a_stage_is_named_with_the_one_it_starts_from_and_with_its_method_once(finished):
    report, samples = finished({"sft": {0: [True] * 4}})
    assert "sft, bash (from sft)" in " ".join(Page(html_page(report, samples)).text.split())
    rows = [replace(row, stage="mine") if row.stage == "bash" else row for row in report.rows]
    costs = [replace(one, stage="mine") if one.stage == "bash" else one for one in report.costs]
    text = Page(html_page(replace(report, rows=rows, costs=costs), samples)).text
    assert "sft, mine (bash from sft)" in " ".join(text.split())


def test_each_seed_has_a_small_dot_where_there_are_several(finished):
    answers = {"sft": {0: [True, False] * 4, 1: [True] * 8}}
    report, samples = finished(answers, seeds=[0, 1])
    assert report.rows[0].primary.per_seed == (50.0, 100.0)
    source = html_page(report, samples)
    assert source.count('class="each"') == 2 and "Small dots: each seed." in source
    one_seed = finished({"sft": {0: [True, False] * 4}}, seeds=[0])
    assert 'class="each"' not in page_of(one_seed)


def test_each_seed_s_difference_has_a_small_dot_too(finished):
    answers = {
        "sft": {0: [True, False] * 4, 1: [True] * 8}, "bash": {0: [True] * 8, 1: [False] * 8},
    }  # fmt: skip
    report, samples = finished(answers, seeds=[0, 1])
    assert report.rows[1].difference.per_seed == (50.0, -100.0)
    differences = html_page(report, samples).rpartition("strict, points over sft")[2]
    assert differences.count('class="each"') == 2 and "Small dots: each seed." in differences
    (plot,) = plots_of("gsm8k", report.rows, "sft")[1:]
    (mark,) = plot.marks
    ticks = [place for place, _ in plot.ticks]
    assert ticks[0] <= mark.seeds[1] < mark.places[1] < mark.seeds[0] <= ticks[-1]


def test_plots_leave_no_row_half_empty(usual):
    """Two or three in a row; one alone has its numbers beside it."""
    report, samples = usual
    dots, charts = 2, [one for one in report.charts if one.benchmark == "gsm8k"]
    by_count = {
        dots + kept: html_page(replace(report, charts=charts[:1] * kept), samples)
        for kept in range(4)
    }
    assert [count for count, page in by_count.items() if "plots three" in page] == [3, 5]
    alone = html_page(replace(report, charts=[charts_of_every_kind()[2]]), samples)
    assert '<figure class="chart wide">' in alone and '"numbers-of" open' in alone


def test_the_page_holds_what_makes_it_again(finished):
    report, samples = finished({"sft": {0: [True, False]}}, system="Be <b>brief</b>.")
    made = replace(report.made, commands=["bashrac run mine.yaml --set 'x=<b>'"], commits=["abc"])
    text = Page(html_page(replace(report, made=made), samples)).text
    assert "system: Be <b>brief</b>." in text and "sft: {method: sft}" in text
    assert "bashrac run mine.yaml --set 'x=<b>'" in text and "bashrac at commitabc" in text
    assert made.fingerprint in text
    assert all(step.folder in text for step in made.steps) and len(made.steps) == 8


def test_an_unfinished_stage_is_said_to_be_so_and_has_no_dot(finished):
    report, samples = finished({"sft": {0: [True, False, True, False]}})
    page = Page(html_page(report, samples))
    assert page.tags.count("circle") == 1
    assert page.text.count("not finished") >= 2 and "bash not finished" in page.text
    assert {stage for view in samples["gsm8k"] for stage in view.answers} == {"sft"}


def test_a_recipe_with_nothing_finished_has_a_page_that_says_so(finished):
    made = finished({})
    page = Page(page_of(made))
    assert made[1] == {} and "svg" not in page.tags and "No stage is finished." in page.text
    assert "sft not finished" in page.text and "Nothing is finished yet." in page.text


def test_a_recipe_without_benchmarks_has_a_table_of_costs_and_no_answers(finished):
    page = Page(page_of(finished({}, evaluate=[])))
    assert page.text.count("tokens trained") == 1 and page.tags.count("table") == 3
    assert "Sample answers" not in page.text and "#answers" not in page.values("href")


def test_several_seeds_are_averaged_and_the_first_ones_answers_shown(finished):
    first, second = [True, False, False, False], [True, True, False, "never shown #### 1"]
    report, samples = finished(
        {"sft": {5: first, 6: second}, "bash": {5: [True, True, False, True]}}, seeds=[5, 6]
    )
    page = Page(html_page(report, samples))
    assert "never shown" not in page.text
    assert "The answers are those of training seed 5." in page.text
    assert "37.5 ± 17.7 %" in page.text and "4 (1 of 2 seeds)" in page.text


def test_answers_of_another_seed_are_shown_where_the_first_has_none_yet(finished):
    made = finished({"sft": {6: [True, False, True, "seen #### 1"]}}, seeds=[5, 6])
    page = Page(page_of(made))
    assert "seen" in page.text and "The answers are those of training seed 6." in page.text


def test_stages_that_were_asked_other_rows_do_not_share_an_example(finished):
    answers = {f"sft@data.test.skip={skip}": {0: [True] * 4} for skip in (0, 2)}
    report, samples = finished(answers, sweep={"data.test.skip": [0, 2]})
    text = Page(html_page(report, samples)).text
    assert samples == {"gsm8k": []} and "#### 3" not in text
    assert "share no test row" in text and "No stage is finished." not in text


def test_of_the_prompt_only_what_all_stages_were_asked_is_shown(finished):
    answers = {f"sft@system={place}": {0: [True] * 4} for place in ("Add.", "Think.")}
    _, samples = finished(answers, sweep={"system": ["Add.", "Think."]})
    first = samples["gsm8k"][0]
    assert [message["role"] for message in first.messages] == ["user"] and len(first.answers) == 2


def test_several_benchmarks_each_have_a_section_and_their_answers(finished):
    answers = {"sft": {0: [True, False, False, False]}, "bash": {0: [True, True, True, False]}}
    made = finished(answers, evaluate=["gsm8k", "rouge"])
    page = Page(page_of(made))
    titles = [value for value in page.values("id") if value.endswith("-title")]
    assert list(made[1]) == ["gsm8k", "rouge"] and len(titles) == 6, "numbers, differences, cost"
    # Four examples and a chart's numbers in each, and the steps.
    assert page.tags.count("details") == 11 and page.values("open") == [None, None]
    assert "bash: ROUGE-L" in page.text and "sft: correct" in page.text


def test_examples_are_drawn_by_seed_among_those_all_stages_answered(finished):
    answers = {"sft": {0: [True] * 30}, "bash": {0: [False] * 25}}
    drawn = finished(answers, count=10)[1]["gsm8k"]
    again = finished(answers, count=10)[1]["gsm8k"]
    ids = [view.id for view in drawn]
    assert drawn == again and ids == sorted(set(ids)) and len(ids) == 10 and max(ids) < 25
    assert ids != list(range(10)), "not just the first"
    assert [view.id for view in finished(answers, count=99)[1]["gsm8k"]] == list(range(25))


def test_a_sample_shows_what_the_model_was_asked_and_what_became_of_its_answer(finished):
    report, samples = finished({"sft": {0: [True, "no number", False, True]}}, system="Be brief.")
    second = samples["gsm8k"][1]
    assert [message["role"] for message in second.messages] == ["system", "user"]
    answer = second.answers["sft"]
    assert (answer.answer, answer.verdict, answer.cut_off) == ("no number", "truncated", True)
    page = Page(html_page(report, samples))
    assert "Before every prompt stands the system message “Be brief.”" in page.text
    assert "sft: truncated, cut off at the token limit" in page.text


def test_an_empty_answer_is_said_to_be_empty(finished):
    assert "(nothing)" in Page(page_of(finished({"sft": {0: ["", True]}}))).text


def test_only_long_answers_get_a_box_that_scrolls(usual):
    source = page_of(usual)
    (box,) = re.findall(r'<div class="words long"[^>]*>', source)
    assert 'tabindex="0"' in box and 'role="region"' in box


def test_a_long_stage_name_is_cut_in_plots_only(usual):
    report, samples = usual
    name = "a-stage-name-" * 8
    rows = [replace(row, stage=name) if row.stage == "bash" else row for row in report.rows]
    source = html_page(replace(report, rows=rows), samples)
    labels = re.findall(r'<text class="stage"[^>]*>([^<]*)<', source)
    assert max(map(len, labels)) < 37 and f"<span>{name}</span>" in source


def test_names_of_a_sweep_are_told_apart_in_plots(usual):
    report, samples = usual
    name = "bash-dpo@bash.beta=0.05,sft.learning_rate="
    bash = next(row for row in report.rows if row.stage == "bash")
    rows = [*report.rows, *(replace(bash, stage=f"{name}{rate}") for rate in ("0.0001", "0.0002"))]
    source = html_page(replace(report, rows=rows), samples)
    labels = re.findall(r'<text class="stage"[^>]*>([^<]*)<', source)
    assert labels.count("bash-dpo@bash.beta=0.05,") == 4
    assert {"sft.learning_rate=0.0001", "sft.learning_rate=0.0002"} <= set(labels)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (4.1, 31.1, [0, 10, 20, 30, 40]),
        (-8, 18, [-10, 0, 10, 20]),
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (50, 50, [50, 50.2, 50.4, 50.6, 50.8, 51]),
        (0.0, 0.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (33.21, 33.24, [33.21, 33.22, 33.23, 33.24]),
    ],
)
def test_ticks_are_round_and_hold_all_numbers(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that keeps its log and every request."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driving = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driving
    driving.quit()


@pytest.fixture
def opened(browser, usual, tmp_path):
    """Open the usual page at a width and colour scheme; returns the browser."""
    file = tmp_path / "report.html"
    file.write_text(page_of(usual), encoding="utf-8")

    def open_page(*, width=1280, scheme="light", media="", path=file):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        emulated = {"media": media, "features": features}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
        browser.get("about:blank")
        for log in ("browser", "performance"):
            browser.get_log(log)  # what is read is forgotten
        browser.get(path.as_uri())
        return browser

    return open_page


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_the_page_never_scrolls_sideways(opened, width, tmp_path):
    page = opened(width=width)
    for details in page.find_elements("css selector", "details:not([open]) summary"):
        details.click()
    inside, outside = page.execute_script(
        "const root = document.documentElement; return [root.scrollWidth, root.clientWidth]"
    )
    assert inside <= outside
    shot = tmp_path / f"report-{width}.png"
    assert page.save_screenshot(str(shot)) and shot.stat().st_size > 5_000


@pytest.mark.parametrize("width", [360, 1280])
def test_texts_of_a_plot_stay_inside_it_and_off_each_other(opened, width):
    overlapping = opened(width=width).execute_script(
        """
        const found = [];
        for (const plot of document.querySelectorAll("svg")) {
          const frame = plot.getBoundingClientRect();
          const boxes = [...plot.querySelectorAll("text")].map(
            text => [text.textContent, text.getBoundingClientRect()]);
          boxes.forEach(([name, a], i) => {
            if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push(name);
            for (const [other, b] of boxes.slice(i + 1))
              if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
                found.push(name + " / " + other);
          });
        }
        return found
        """
    )
    assert overlapping == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_goes_on_has_a_shadow_at_its_side(opened, scheme, tmp_path):
    Image = pytest.importorskip("PIL.Image")
    page = opened(width=360, scheme=scheme)
    box = page.find_element("css selector", ".scroll")
    page.execute_script("arguments[0].scrollIntoView()", box)

    def edge(name):
        file = tmp_path / f"{name}.png"
        box.screenshot(str(file))
        with Image.open(file) as image:
            return image.convert("RGB").getpixel((image.width - 2, 4))

    behind = edge("start")
    page.execute_script("arguments[0].scrollLeft = arguments[0].scrollWidth", box)
    plain = edge("end")
    assert max(abs(a - b) for a, b in zip(behind, plain, strict=True)) > 40


@pytest.mark.parametrize("width", [360, 1280])
def test_marks_stand_on_the_ends_of_their_lines_however_wide_the_plot(opened, width):
    """Lines are drawn in a stretched picture, marks are not."""
    offsets = opened(width=width).execute_script(
        """
        const found = [];
        for (const plot of document.querySelectorAll("svg.lines")) {
          const lines = [...plot.querySelectorAll("polyline")];
          const series = [...plot.querySelectorAll("g")].filter(g => g.querySelector("path"));
          lines.forEach((line, i) => {
            const box = line.getBoundingClientRect();
            const marks = [...series[i].querySelectorAll("path")].map(mark => {
              const one = mark.getBoundingClientRect(); return (one.left + one.right) / 2;
            });
            found.push(marks[0] - box.left, marks.at(-1) - box.right);
          });
        }
        return found
        """
    )
    assert len(offsets) > 40 and max(map(abs, offsets)) < 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_curve_stands_out_from_the_page(opened, scheme):
    inks, page = opened(scheme=scheme).execute_script(
        """
        const lines = [...document.querySelectorAll(".lines .line, .lines .mark")];
        const inks = new Set(lines.map(line => getComputedStyle(line).stroke));
        return [[...inks], getComputedStyle(document.body).backgroundColor]
        """
    )
    assert len(inks) == 9, "eight colours and that of the baseline"
    for ink in inks:
        darker, lighter = sorted([luminance(ink), luminance(page)])
        assert (lighter + 0.05) / (darker + 0.05) >= 3, ink


def test_only_the_file_is_requested_and_nothing_is_logged(opened, tmp_path):
    page = opened()
    page.find_elements("css selector", "summary")[1].click()
    urls = re.findall(
        r'requestWillBeSent".*?"url":"([^"]+)"',
        "\n".join(entry["message"] for entry in page.get_log("performance")),
    )
    assert set(urls) == {(tmp_path / "report.html").as_uri()}
    assert page.get_log("browser") == []


def test_the_policy_stops_what_would_get_past_the_escaping(opened, tmp_path):
    source = (tmp_path / "report.html").read_text()
    broken = tmp_path / "broken.html"
    evil = "<script>document.title = 'owned'</script><p style='color: red'>x</p><img src=x.png>"
    broken.write_text(source.replace("<main>", f"<main>{evil}"), encoding="utf-8")
    page = opened(path=broken)
    assert page.title == "tiny: bashrac report"
    violations = [entry["message"] for entry in page.get_log("browser")]
    assert len([one for one in violations if "Content Security Policy" in one]) >= 3


def test_an_example_opens_from_the_keyboard(opened):
    keys = pytest.importorskip("selenium.webdriver").Keys
    page = opened()
    first, second = page.find_elements("css selector", "[aria-labelledby=answers] details")[:2]
    assert first.get_attribute("open") and not second.get_attribute("open")
    summary = second.find_element("css selector", "summary")
    for _ in range(90):
        page.switch_to.active_element.send_keys(keys.TAB)
        if page.switch_to.active_element == summary:
            break
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    summary.send_keys(keys.ENTER)
    assert second.get_attribute("open")
    assert second.find_element("css selector", ".answer").is_displayed()


def luminance(colour):
    """Relative luminance of 'rgb(r, g, b)', as WCAG defines it."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_background(opened, scheme):
    pairs = opened(scheme=scheme).execute_script(
        """
        const found = new Map();
        const behind = one => {
          for (; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor;
            if (colour !== "rgba(0, 0, 0, 0)") return colour;
          }
        };
        for (const one of document.querySelectorAll("body *")) {
          const own = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
          if (!own || !one.checkVisibility() || one.matches("svg title, svg desc")) continue;
          const style = getComputedStyle(one);
          const ink = one.namespaceURI.includes("svg") ? style.fill : style.color;
          found.set(ink + behind(one), [ink, behind(one), one.className.baseVal ?? one.className]);
        }
        return [...found.values()]
        """
    )
    assert len(pairs) >= 5
    for ink, paper, name in pairs:
        darker, lighter = sorted([luminance(ink), luminance(paper)])
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, paper, name)
    (page,) = {paper for _, paper, _ in pairs if "255" in paper} or {None}
    assert (page is not None) == (scheme == "light")


def test_print_is_black_on_white_and_holds_the_closed_examples(opened):
    page = opened(scheme="dark", media="print")
    colours = page.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    closed = page.execute_script(
        "return [...document.querySelectorAll('details:not([open]) .words')].map("
        "one => one.checkVisibility({contentVisibilityAuto: true}) && one.offsetHeight > 0)"
    )
    assert len(closed) >= 20 and all(closed)
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 10_000


def test_an_answer_keeps_its_line_breaks_and_a_long_one_scrolls(opened):
    page = opened()
    for summary in page.find_elements("css selector", "details:not([open]) summary"):
        summary.click()
    box = page.find_element("css selector", ".words.long")
    content, height, space = page.execute_script(
        "const box = arguments[0];"
        "return [box.scrollHeight, box.clientHeight, getComputedStyle(box).whiteSpaceCollapse]",
        box,
    )
    assert content > height and space == "preserve"
    assert HOSTILE.count("\n") == html.unescape(
        page.find_element("css selector", ".answer .words").get_attribute("textContent")
    ).count("\n")
