import math

import torch

from pipeline.decoding import noise

ROWS = torch.arange(200)[:, None]
POSITIONS = torch.arange(100)[None, :]


def test_a_draw_depends_on_row_and_position_only_not_on_company():
    together = noise.keys(7, ROWS, POSITIONS, stream=noise.SAMPLE)
    alone = noise.keys(7, torch.tensor(31), torch.tensor(64), stream=noise.SAMPLE)
    assert together[31, 64] == alone
    assert together.unique().numel() == 200 * 100


def test_seeds_and_streams_are_unrelated():
    draws = [
        noise.uniform(noise.keys(seed, ROWS, POSITIONS, stream=stream)).flatten()
        for seed, stream in [(0, 1), (1, 1), (0, 2), (2**62 + 11, 1), (-5, 1)]
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    # n = 20,000 independent pairs: standard error 0.007; 0.035 is five of them.
    assert correlation.abs().max() < 0.035


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    """Mean 1/2 and variance 1/12; with n = 20,000 their standard errors are 0.002 and 0.0005."""
    draws = noise.uniform(noise.keys(3, ROWS, POSITIONS, stream=noise.REPLACE))
    assert draws.min() > 0 and draws.max() < 1
    assert abs(draws.mean().item() - 0.5) < 0.01
    assert abs(draws.var().item() - 1 / 12) < 0.0025
    assert noise._mixed_in_place(torch.tensor([0])) == 0  # a bijection that keeps 0
    assert ((1 << 52) - 1 + 0.5) / (1 << 52) < 1.0


def test_largest_of_logits_plus_gumbel_noise_is_a_sample_of_the_softmax():
    """Gumbel-max: P(argmax = i) = softmax(logits)_i. n = 20,000, standard error at most 0.0036."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    key = noise.keys(11, torch.arange(20_000), torch.tensor(5), stream=noise.SAMPLE)
    picked = (logits + noise.gumbel(key, 5)).argmax(dim=-1)
    shares = torch.bincount(picked, minlength=5) / 20_000
    assert (shares - logits.softmax(-1)).abs().max() < 0.015
    assert shares[4] == 0


def test_gumbel_noise_has_its_mean_and_is_finite():
    """The mean of a standard Gumbel is the Euler-Mascheroni constant, its variance pi^2 / 6."""
    key = noise.keys(0, torch.arange(100), torch.tensor(0), stream=noise.SAMPLE)
    draws = noise.gumbel(key, 2000)
    assert draws.isfinite().all() and draws.dtype == torch.float32
    assert abs(draws.mean().item() - 0.5772) < 0.015
    assert abs(draws.var().item() - math.pi**2 / 6) < 0.05
