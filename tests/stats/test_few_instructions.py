"""The simulation of length-controlled win rates on few instructions: one cell of its table."""

import numpy as np
import pytest
from conftest import SHARED, benchmark_script

ALPACA = SHARED / "alpaca_eval2"


@pytest.fixture(scope="module")
def simulation():
    return benchmark_script("few_instructions")


@pytest.mark.skipif(not ALPACA.is_dir(), reason=f"needs the AlpacaEval files in {ALPACA}")
def test_few_instructions_are_further_off_than_all(simulation):
    table, gamed = simulation.read_table(ALPACA)
    assert all(columns.shape == (4, 805) for columns in table.values())
    assert not np.isnan(list(table.values())).any(), "these models have all verdicts"
    columns = table["gpt4_0613_concise"]
    few = simulation.off(columns, gamed, 50, draws=4, resamples=10)
    whole = simulation.off(columns, gamed, 805, draws=1, resamples=10)
    assert few.error > 1 and abs(few.bias) <= few.error and 0 <= few.held <= 1
    assert (whole.bias, whole.error, whole.held) == (0.0, 0.0, 1.0)
