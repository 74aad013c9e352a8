import json

from pipeline.rows.shards import length_buckets, write_in_shards
from pipeline.steps.context import StepContext, StepLaunch
from pipeline.steps.spec import StepSpec


def test_groups_are_of_similar_sizes_and_fit_the_budget():
    sizes = [100, 90, 60, 50, 49, 20, 3, 1]
    groups = list(length_buckets(sizes, lambda size: size, 200))
    assert groups == [([100, 90, 60], 2), ([50, 49], 4), ([20], 10), ([3], 66), ([1], 200)]


def test_what_is_over_the_budget_goes_alone_and_nothing_is_lost():
    assert list(length_buckets([70, 60], lambda size: size, 10)) == [([70, 60], 1)]
    assert list(length_buckets([0, 0], lambda size: size, 10)) == [([0], 10), ([0], 10)]
    assert list(length_buckets([], len, 10)) == []


def test_a_row_that_two_processes_have_made_is_kept_once(tmp_path):
    """One takes rows from the end of the other's share, which may just have come to them."""
    spec = StepSpec(
        kind="answers", run="pipeline.answers:write_answers", stage="s", seed=0, title="t",
        options={}, inputs={}, locations={}, runtime_options={"batch_tokens": 8},
    )  # fmt: skip
    (tmp_path / "shards").mkdir()
    for writer in (0, 1):  # as two processes that were stopped have left them
        lines = [json.dumps({"id": row}) + "\n" for row in (4, 2 + writer)]
        (tmp_path / "shards" / f"4-{writer}.jsonl").write_text("".join(lines))
    made = []

    def make(items):
        made.extend(items)
        yield from ({"id": item} for item in items)

    rows = write_in_shards(
        StepContext(tmp_path, spec, StepLaunch(processes=1, use_cpu=True)), range(6), make,
        key=lambda item: (item,), size=lambda item: item, row_key=lambda row: (row["id"],),
        tokens=lambda row: 1, file_name="rows.jsonl",
    )  # fmt: skip
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert made == [5, 1, 0], "longest first, and none that is there"
    assert not (tmp_path / "shards").exists()
