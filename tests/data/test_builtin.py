"""The built-in data sets are fixed, disjoint, and right wherever a program can tell."""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import pytest
from conftest import ROOT

from pipeline.data.builtin import chat, maths, posts
from pipeline.data.builtin import rows as builtin
from pipeline.data.builtin.rows import SIZES, SPLITS, builtin_rows
from pipeline.steps.identity import BUILTIN_VERSION

ALL = [(name, split) for name, splits in SPLITS.items() for split in splits]
EXPRESSION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
# Digest of every row of every split: when it changes, so must BUILTIN_VERSION.
DIGEST_OF_VERSION = {1: "36878c895cba424d63299012739d3d7140dcd6ac7195f17874dfd03c33bec4c0"}


@cache
def rows_of(name: str, split: str) -> list[dict[str, Any]]:
    return builtin_rows(name, split)


def digest(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def prompt_of(name: str, row: dict[str, Any]) -> str:
    if name == "posts":
        return row["post"]
    if "question" in row:
        return row["question"]
    return (row.get("prompt") or row["messages"])[0]["content"]


def final_of(answer: str) -> int:
    last = answer.split("\n")[-1]
    assert re.fullmatch(r"#### \d+", last), answer
    return int(last.removeprefix("#### "))


def numbers_in(text: str) -> set[str]:
    return set(re.findall(r"\d+", text))


def run_python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_second_call_gives_the_same_rows_in_new_objects():
    for pair in ALL:
        again = builtin_rows(*pair)
        assert again == rows_of(*pair)
        assert again[0] is not rows_of(*pair)[0]


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_another_process_with_another_hash_seed_gives_the_same_rows(hash_seed: str):
    code = (
        "import hashlib, json\n"
        "from pipeline.data.builtin.rows import SPLITS, builtin_rows\n"
        "rows = [builtin_rows(n, s, limit=200) for n in SPLITS for s in SPLITS[n]]\n"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    expected = digest([rows_of(*pair)[:200] for pair in ALL])
    assert run_python(code, PYTHONHASHSEED=hash_seed) == expected


def test_rows_do_not_change_without_a_new_version():
    assert {BUILTIN_VERSION: digest([rows_of(*pair) for pair in ALL])} == DIGEST_OF_VERSION


def test_train_is_the_default_split():
    assert builtin_rows("maths", limit=3) == rows_of("maths", "train")[:3]


@pytest.mark.parametrize(("name", "split"), ALL)
def test_sizes_and_limits(name: str, split: str):
    rows = rows_of(name, split)
    assert len(rows) == SIZES[split] == {"train": 4000, "test": 1000, "preferences": 2000}[split]
    for limit in (0, 1, 64):
        assert builtin_rows(name, split, limit=limit) == rows[:limit]
    assert builtin_rows(name, split, limit=10**6) == rows


@pytest.mark.parametrize("name", SPLITS)
def test_no_prompt_comes_twice_within_or_across_splits(name: str):
    prompts = [prompt_of(name, row) for split in SPLITS[name] for row in rows_of(name, split)]
    assert [prompt for prompt, count in Counter(prompts).items() if count > 1] == []


def test_no_post_is_a_retelling_of_another_with_the_same_summary():
    summaries = [row["summary"] for split in SPLITS["posts"] for row in rows_of("posts", split)]
    assert len(set(summaries)) == len(summaries) == 5000


@pytest.mark.parametrize(("name", "split"), ALL)
def test_the_key_of_a_row_alone_says_which_split_may_hold_it(name: str, split: str):
    for row in rows_of(name, split):
        assert builtin.split_of(row.get("summary") or prompt_of(name, row)) == split


def test_every_slot_of_a_story_is_told_so_two_stories_never_read_the_same():
    def fields(text: str) -> set[str]:
        return {field for _, field, _, _ in string.Formatter().parse(text) if field}

    for story in posts.STORIES:
        told = set().union(*map(fields, story.facts))
        told |= set.intersection(*map(fields, story.openings))
        told |= set.intersection(*map(fields, story.questions))
        assert told == set(story.slots), story.subreddit


@pytest.mark.parametrize("limit", [-1, -4000])
def test_a_negative_limit_is_refused(limit: int):
    with pytest.raises(ValueError, match="limit is -"):
        builtin_rows("maths", limit=limit)


@pytest.mark.parametrize(
    ("name", "split", "valid"),
    [
        ("math", "train", "maths, posts, chat"),
        ("", "train", "maths, posts, chat"),
        ("maths", "validation", "train, test, preferences"),
        ("posts", "preferences", "train, test"),
    ],
)
def test_an_unknown_name_or_split_is_told_what_is_valid(name: str, split: str, valid: str):
    with pytest.raises(ValueError, match=rf"valid: {valid}\.$"):
        builtin_rows(name, split)


def test_import_is_light():
    code = "import sys, pipeline.data.builtin.rows; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    loaded = set(run_python(code).split())
    assert "pipeline" in loaded
    outsiders = loaded - sys.stdlib_module_names - {"pipeline", "__main__"}
    bare = set(run_python("import sys; print(*sys.modules)").split())  # .pth files of the venv
    assert outsiders - {module.partition(".")[0] for module in bare} == set()


def test_planning_the_demo_reads_no_words():
    code = (
        "import sys; from pipeline.cli.main import main; main(['plan', 'demo']); "
        "print('pipeline.data.builtin.words' in sys.modules)"
    )
    assert run_python(code).split("\n")[-1] == "False"


@pytest.mark.parametrize(("name", "split"), ALL)
def test_64_rows_are_made_without_making_the_rest(
    name: str, split: str, monkeypatch: pytest.MonkeyPatch
):
    draws = []
    real = builtin._draw
    monkeypatch.setattr(builtin, "_draw", lambda *args, **kw: draws.append(1) or real(*args, **kw))
    start = time.perf_counter()
    builtin_rows(name, split, limit=64)
    assert time.perf_counter() - start < 1
    assert 64 <= len(draws) < 64 * 10  # the smallest splits take two draws in ten


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_worked_line_of_maths_is_right(split: str):
    signs = Counter()
    for row in rows_of("maths", split):
        assert set(row) == {"question", "answer"}
        *lines, _ = row["answer"].split("\n")
        assert 1 <= len(lines) <= 3
        for line in lines:
            ((left, sign, right, result),) = EXPRESSION.findall(line)
            signs[sign] += 1
            values = int(left), int(right), int(result)
            assert all(2 <= value <= 200 for value in values), line
            expected = {
                "+": values[0] + values[1],
                "-": values[0] - values[1],
                "*": values[0] * values[1],
                "/": values[0] / values[1],
            }[sign]
            assert values[2] == expected, line
        assert final_of(row["answer"]) == values[2]
        assert all(0 <= int(number) <= 200 for number in numbers_in(row["question"]))
        assert "<<" not in row["answer"]
    assert set(signs) == set("+-*/")


def test_each_number_of_a_worked_line_comes_from_the_question_or_an_earlier_line():
    for row in rows_of("maths", "train"):
        known = numbers_in(row["question"])
        if "twice" in row["question"] or "half" in row["question"]:
            known.add("2")
        known |= {
            n for n, word in (("3", "three times"), ("4", "four times")) if word in row["question"]
        }
        for left, _, right, result in EXPRESSION.findall(row["answer"]):
            assert {left, right} <= known, row
            known.add(result)


def test_every_number_of_a_question_is_needed():
    for row in rows_of("maths", "train"):
        used = {n for left, _, right, _ in EXPRESSION.findall(row["answer"]) for n in (left, right)}
        assert numbers_in(row["question"]) <= used, row


def test_maths_is_short_and_varied():
    rows = rows_of("maths", "train")
    words = [len(row["question"].split()) for row in rows]
    assert max(words) <= 45
    assert 20 <= sum(words) / len(words) <= 35
    lines = [line for row in rows for line in row["answer"].split("\n")]
    assert max(len(line.split()) for line in lines) <= 12
    templates = [t for group in maths.TEMPLATES.values() for t in group]
    assert len(templates) >= 24
    steps = Counter(row["answer"].count("\n") for row in rows)
    for count, share in ((1, 0.4), (2, 0.4), (3, 0.2)):
        assert steps[count] / len(rows) == pytest.approx(share, abs=0.03)


def test_every_template_has_the_steps_it_is_filed_under():
    for count, templates in maths.TEMPLATES.items():
        assert {len(template.steps) for template in templates} == {count}


def test_no_singular_quantity_and_no_wrong_article():
    for split in SPLITS["maths"]:
        for row in rows_of("maths", split):
            text = prompt_of("maths", row)
            assert not re.search(r"\b1\b", text)
            assert not re.search(r"\ba [aeiou]|\ban (?!hour)[^aeiou]", text), text
            assert not re.search(r"[{}]|  ", text)


def test_rejected_maths_answers_are_wrong_in_several_ways():
    right_lines = 0
    wrong_lines = 0
    shorter = 0
    for row in rows_of("maths", "preferences"):
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert [message["role"] for message in row["prompt"]] == ["user"]
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        assert final_of(chosen) != final_of(rejected)
        assert 0 <= final_of(rejected) <= 200
        steps = EXPRESSION.findall(rejected)
        assert final_of(rejected) == int(steps[-1][-1])
        errors = sum(
            int(result)
            != {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}.get(
                sign, int(a) / int(b)
            )
            for a, sign, b, result in steps
        )
        assert errors <= 1, rejected
        is_shorter = rejected.count("\n") < chosen.count("\n")
        shorter += is_shorter
        wrong_lines += errors
        right_lines += errors == 0 and not is_shorter
    assert min(right_lines, wrong_lines, shorter) >= 200, (right_lines, wrong_lines, shorter)


@pytest.mark.parametrize("split", ["train", "test"])
def test_posts_have_the_promised_lengths_and_fields(split: str):
    rows = rows_of("posts", split)
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["subreddit"] for row in rows}) >= 12
    for row in rows:
        assert set(row) == {"id", "subreddit", "title", "post", "summary"}
        assert 60 <= len(row["post"].split()) <= 140, row["post"]
        assert 8 <= len(row["summary"].split()) <= 30, row["summary"]
        assert not re.search(r"[{}]|  ", row["title"] + row["post"] + row["summary"])
    assert 0.3 < sum("\n\n" in row["post"] for row in rows) / len(rows) < 0.9


def test_a_summary_says_nothing_the_post_does_not():
    for row in rows_of("posts", "train") + rows_of("posts", "test"):
        assert numbers_in(row["summary"]) <= numbers_in(row["post"]), row
        names = set(re.findall(r"(?<=[a-z,] )[A-Z]\w+", row["summary"]))
        names |= set(maths.NAMES) & set(re.findall(r"\w+", row["summary"]))
        assert names <= set(re.findall(r"\w+", row["post"])), row


@pytest.mark.parametrize("story", posts.STORIES, ids=lambda story: story.subreddit)
def test_however_a_story_is_told_its_summary_is_the_same(
    story: posts.Story, monkeypatch: pytest.MonkeyPatch
):
    fixed = story._replace(slots={slot: values[:1] for slot, values in story.slots.items()})
    monkeypatch.setattr(posts, "STORIES", (fixed,))
    draws = [posts.draw(Random(seed)) for seed in range(30)]
    assert len({row["post"] for _, row in draws}) > 20
    assert {(key, row["summary"]) for key, row in draws} == {(draws[0][0], draws[0][0])}


def test_copying_the_first_sentence_is_a_poor_summary():
    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+", text.lower()))

    overlaps = []
    for row in rows_of("posts", "train"):
        first = re.split(r"(?<=[.?!])\s", row["post"])[0]
        overlaps.append(len(words(first) & words(row["summary"])) / len(words(row["summary"])))
    assert sum(overlaps) / len(overlaps) < 0.4


@pytest.mark.parametrize("split", ["train", "test"])
def test_chat_rows_are_one_question_and_one_answer(split: str):
    for row in rows_of("chat", split):
        assert set(row) == {"messages"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert all(m["content"].strip() == m["content"] != "" for m in row["messages"])
        assert not re.search(r"  ", row["messages"][0]["content"])


def test_a_rejected_chat_answer_is_never_the_chosen_one():
    for row in rows_of("chat", "preferences"):
        assert set(row) == {"prompt", "chosen", "rejected"}
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        assert chosen.strip() and rejected.strip()
        assert chosen.strip() != rejected.strip()


def chat_pairs(pattern: str) -> list[tuple[re.Match[str], str]]:
    """Prompts that match, with their good answers."""
    found = []
    for row in rows_of("chat", "train"):
        prompt, answer = (message["content"] for message in row["messages"])
        if match := re.search(pattern, prompt):
            found.append((match, answer))
    assert len(found) > 50, pattern
    return found


def test_no_chat_family_runs_out_of_prompts(monkeypatch: pytest.MonkeyPatch):
    def named(family: Callable[[Random], chat.Exchange]):
        def draw(random: Random) -> chat.Exchange:
            exchange = family(random)
            return exchange._replace(prompt=f"{family.__name__}: {exchange.prompt}")

        return draw

    families = chat.FAMILIES
    assert len(families) >= 14
    monkeypatch.setattr(chat, "FAMILIES", tuple(map(named, families)))
    rows = builtin_rows("chat", "train")
    counts = Counter(prompt_of("chat", row).partition(":")[0] for row in rows)
    fair = len(rows) / len(families)
    assert len(counts) == len(families)
    assert min(counts.values()) > fair / 2, counts
    assert max(counts.values()) < fair * 1.5, counts


def test_chat_sorts_words_correctly():
    for match, answer in chat_pairs(r"(from Z to A|in alphabetical order): (.*)"):
        backwards = match[1] == "from Z to A"
        assert answer.split(", ") == sorted(match[2].split(", "), reverse=backwards)


def test_chat_counts_letters_correctly():
    for match, answer in chat_pairs(r'letters (?:in|do) "(\w+)" and "(\w+)"'):
        assert f"there are {len(match[1] + match[2])} letters" in answer
    for match, answer in chat_pairs(r'letter "(\w)" appear in "(\w+) (\w+)"'):
        count = (match[2] + match[3]).count(match[1])
        words = ["", "once", "two times", "three times", "four times", "five times"]
        assert f"appears {words[count]} in" in answer


def test_chat_converts_units_correctly():
    seconds = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 604800}
    meters = {"millimeters": 1, "centimeters": 10, "meters": 1000, "kilometers": 1_000_000}
    inches = {"inches": 1, "feet": 12, "yards": 36}
    rest = {"grams": 1, "kilograms": 1000, "milliliters": 1, "liters": 1000}
    units = {**seconds, **meters, **inches, **rest, "months": 1, "years": 12}
    for _, answer in chat_pairs(r"^(Convert|How many \w+ are|What is) \d*"):
        match = re.fullmatch(r"(\d+) (\w+) are (\d+) (\w+)\.", answer)
        assert match, answer
        assert int(match[1]) * units[match[2]] == int(match[3]) * units[match[4]], answer


def test_chat_compares_numbers_and_continues_sequences_correctly():
    for match, answer in chat_pairs(r"(larger|smaller), (\d+) or (\d+), and"):
        pair = int(match[2]), int(match[3])
        first = max(pair) if match[1] == "larger" else min(pair)
        assert answer.startswith(f"{first} is {match[1]} than ")
        assert answer.endswith(f"The difference is {abs(pair[0] - pair[1])}.")
    for match, answer in chat_pairs(r"^(\d+), (\d+), (\d+), (\d+): "):
        first, second, third, fourth = map(int, match.groups())
        step = second - first
        assert third - second == fourth - third == step
        assert answer == f"{fourth + step}, {fourth + 2 * step}"


def test_chat_lists_as_many_items_as_asked_and_not_the_banned_one():
    words = ("zero", "one", "two", "three", "four", "five")
    for match, answer in chat_pairs(r"^\w+(?: me)? (\w+) [\w ]+ as a .*Leave out (\w+)\.$"):
        items = answer.split("\n")
        assert len(items) == len(set(items)) == words.index(match[1])
        assert match[2] not in answer


def test_chat_names_weekdays_correctly():
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    for match, answer in chat_pairs(r"[Tt]oday is (\w+)\D+(\d+) days"):
        assert answer == f"It will be {days[(days.index(match[1]) + int(match[2])) % 7]}."


def test_chat_extracts_json_with_the_asked_keys_from_the_text():
    for match, answer in chat_pairs(r"^Give the (.*) from this text as a JSON object: (.*)"):
        fields = json.loads(answer)
        assert list(fields) == re.split(r", | and ", match[1])
        assert all(value in match[2] for value in fields.values())
