from pipeline.rows.shards import length_buckets


def test_groups_are_of_similar_sizes_and_fit_the_budget():
    sizes = [100, 90, 60, 50, 49, 20, 3, 1]
    groups = list(length_buckets(sizes, lambda size: size, 200))
    assert groups == [([100, 90, 60], 2), ([50, 49], 4), ([20], 10), ([3], 66), ([1], 200)]


def test_what_is_over_the_budget_goes_alone_and_nothing_is_lost():
    assert list(length_buckets([70, 60], lambda size: size, 10)) == [([70, 60], 1)]
    assert list(length_buckets([0, 0], lambda size: size, 10)) == [([0], 10), ([0], 10)]
    assert list(length_buckets([], len, 10)) == []
