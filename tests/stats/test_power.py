"""What a report would find, by formula; test_protocol.py compares it with the simulation."""

import time

import pytest
from conftest import imported_by

from eval.stats.power import detectable, seeds_needed, share_found


def test_more_seeds_and_items_find_smaller_differences():
    assert detectable(600, 3) > detectable(600, 5) > detectable(1319, 5) > 0
    assert share_found(detectable(600, 3), 600, 3) == pytest.approx(0.8, abs=0.01)
    needed = seeds_needed(5, 600)
    assert needed is not None and share_found(5, 600, needed - 1) < 0.8 <= share_found(
        5, 600, needed
    )
    assert seeds_needed(1, 600) is None and seeds_needed(50, 600) == 2
    with pytest.raises(ValueError, match="one seed says nothing about the variance"):
        detectable(600, 1)


def test_it_is_light():
    assert not {"numpy", "scipy"} & imported_by("pipeline.run.findable")
    begin = time.process_time()
    detectable(700, 3), [seeds_needed(points, 700) for points in (1, 2, 5)]
    assert time.process_time() - begin < 0.05
