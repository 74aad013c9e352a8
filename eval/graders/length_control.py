"""AlpacaEval 2's length-controlled win rate: a regression that removes the effect of length.

Formulas are those of AlpacaEval's `length_controlled_v1`: Dubois et al. (2024), Length-Controlled
AlpacaEval, arXiv:2404.04475. A preference is a number in [1, 2]: 1 where the baseline's answer is
better, 2 where the model's is. Rows without a preference (NaN, None) are ignored throughout.

Axis suffixes: N the model's rows, G gamed rows, R both (gamed first), K values of C, F folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eval.stats.types import Interval

if TYPE_CHECKING:
    import numpy as np

_GAMED_WEIGHT = 0.1  # 0.2 shared by two gamed baselines; the model's rows have weight 1
_FOLDS = 5


@dataclass(frozen=True)
class WinRate:
    """How often a model's answers are preferred over the baseline's, in percent.

    Attributes:
        win_rate: Raw win rate, 100 * mean(preference - 1).
        n: Number of judged instructions.
        standard_error: Of the raw win rate over instructions, 100 * std(ddof=1) / sqrt(n), as
            AlpacaEval prints it; None for n = 1.
        lc_win_rate: Length-controlled win rate, or None (see `reason`).
        reason: Why there is no length-controlled win rate, or None.
        lc_standard_error: Standard deviation over the bootstrap resamples.
        lc_interval: 95 % percentile bootstrap interval: instructions are resampled and the
            regression is fitted again, with the same C and gamed rows. None unless requested.
        lc_replicates: The values of the resamples. Two models on the same instructions get the same
            resamples, including instructions without a verdict, so differences are paired.
        C: Inverse strength of the L1 penalty, None if nothing was fitted.
    """

    win_rate: float
    n: int
    standard_error: float | None
    lc_win_rate: float | None = None
    reason: str | None = None
    lc_standard_error: float | None = None
    lc_interval: Interval | None = None
    lc_replicates: tuple[float, ...] = ()
    C: float | None = None


def length_controlled_win_rate(
    preferences: Sequence[float],
    model_lengths: Sequence[float],
    baseline_lengths: Sequence[float],
    difficulty: Sequence[float] | None,
    gamed: Sequence[Sequence[float]] | None = None,
    C: float | None = None,
    *,
    resamples: int = 0,
) -> WinRate:
    """Return raw and length-controlled win rate of one model; columns have shape (N,).

    A logistic regression without intercept (L1, liblinear) predicts p = preference - 1 from
    x1 = tanh((baseline length - model length) / std), x2 = difficulty and x3 = 1 (0 in gamed rows).
    LC = 100 * mean sigmoid(b2*x2 + b3), the prediction at equal lengths (Dubois et al., section
    3). The baseline against itself is 50 by construction.

    Args:
        preferences: Numbers in [1, 2]; NaN or None for no verdict.
        model_lengths: Characters of the model's answers.
        baseline_lengths: Characters of the baseline's answers.
        difficulty: Difficulties of the instructions; None gives the raw win rate only.
        gamed: Rows (std_delta_len, difficulty, preference in [0, 1]) of the baseline prompted to be
            verbose or concise, (G, 3); without them there is no length-controlled win rate.
        C: Inverse strength of the penalty; None cross-validates over logspace(-4, 4, 10).
        resamples: Resamples for lc_interval (1000 take two seconds); 0 leaves it out.

    Raises:
        ValueError: If columns differ in length, no row is judged, or a value is out of range.
    """
    judged = _judged_rows(
        preferences=preferences,
        model_lengths=model_lengths,
        baseline_lengths=baseline_lengths,
        **({} if difficulty is None else {"difficulty": difficulty}),
    )
    if C is not None and not 0 < C < math.inf:
        raise ValueError(f"C is {C}, valid is a positive number, or None to cross-validate")
    if resamples < 0 or resamples == 1:
        raise ValueError(f"resamples is {resamples}, valid is 0 for none, or at least 2 (1000)")
    gamed_G3 = None if gamed is None else as_gamed(gamed)
    p_N = judged["preferences"] - 1
    delta_N = judged["baseline_lengths"] - judged["model_lengths"]
    n = len(p_N)
    error = float(100 * p_N.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    raw = WinRate(win_rate=float(100 * p_N.mean()), n=n, standard_error=error)
    if gamed_G3 is None:
        reason = "no gamed baseline rows (AlpacaEval's df_gamed.csv): up to 13.7 points off without"
        return replace(raw, reason=reason)
    if difficulty is None or n == 1:
        reason = "no instruction difficulties" if difficulty is None else "one row has no spread"
        return replace(raw, reason=reason)
    if not delta_N.any() and (p_N == 0.5).all():
        return replace(raw, lc_win_rate=50.0, lc_replicates=(50.0,) * resamples)
    rows = (p_N, delta_N, judged["difficulty"])
    if C is None:
        C = _cross_validated_c(*_design(rows, gamed_G3))
    result = replace(raw, lc_win_rate=_fitted_lc(rows, gamed_G3, C), C=float(C))
    if resamples == 0:
        return result
    return _with_bootstrap(result, rows, gamed_G3, _places(preferences), resamples)


def _judged_rows(**columns: Sequence[float]) -> dict[str, np.ndarray]:
    import numpy as np

    arrays = {name: _as_numbers(name, values) for name, values in columns.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    if len(set(shapes.values())) > 1 or len(shapes["preferences"]) != 1:
        raise ValueError(
            f"columns do not match, their shapes are {shapes}: give each one number per row, with "
            "NaN as the preference where there is no verdict"
        )
    judged_N = ~np.isnan(arrays["preferences"])
    if not judged_N.any():
        raise ValueError(
            f"none of {len(judged_N)} rows has a preference, and an empty evaluation is an error, "
            "not 0.0: judge at least one row"
        )
    ranges = {"preferences": (1, 2), "difficulty": (-math.inf, math.inf)}
    for name, values_N in arrays.items():
        low, high = ranges.get(name, (0, math.inf))
        bad_N = judged_N & ~(np.isfinite(values_N) & (values_N >= low) & (values_N <= high))
        if bad_N.any():
            row = int(bad_N.argmax())
            raise ValueError(
                f"{name}[{row}] is {values_N[row]}, valid are finite numbers from {low} to {high}; "
                "a row without a verdict has NaN as its preference"
            )
    return {name: values_N[judged_N] for name, values_N in arrays.items()}


def _as_numbers(name: str, values: Any) -> np.ndarray:
    import numpy as np

    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers only: {error}") from None


def as_gamed(gamed: Sequence[Sequence[float]]) -> np.ndarray:
    """Return gamed rows as an array (G, 3); raise ValueError if they are malformed."""
    import numpy as np

    gamed_G3 = _as_numbers("gamed", gamed)
    is_table = gamed_G3.ndim == 2 and gamed_G3.shape[1] == 3 and len(gamed_G3) > 0
    if not is_table or not np.isfinite(gamed_G3).all() or (abs(gamed_G3[:, 2] - 0.5) > 0.5).any():
        raise ValueError(
            f"gamed (shape {gamed_G3.shape}) must be rows of (std_delta_len, difficulty, "
            "preference in [0, 1]), all finite; pass None where there are none"
        )
    return gamed_G3


def _places(preferences: Sequence[float]) -> np.ndarray:
    """Return each row's index among the judged rows, -1 if it is not judged."""
    import numpy as np

    judged_N = ~np.isnan(_as_numbers("preferences", preferences))
    return np.where(judged_N, np.cumsum(judged_N) - 1, -1)


def _with_bootstrap(
    result: WinRate,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    gamed_G3: np.ndarray,
    places_N: np.ndarray,
    resamples: int,
) -> WinRate:
    import numpy as np

    assert result.C is not None
    rng = np.random.default_rng(0)
    lcs = []
    while len(lcs) < resamples:
        drawn = places_N[rng.integers(0, len(places_N), size=len(places_N))]
        drawn = drawn[drawn >= 0]
        if len(drawn):
            p_N, delta_N, difficulty_N = (values[drawn] for values in rows)
            lcs.append(_fitted_lc((p_N, delta_N, difficulty_N), gamed_G3, result.C))
    low, high = np.quantile(lcs, [0.025, 0.975])
    return replace(
        result,
        lc_standard_error=float(np.std(lcs, ddof=1)),
        lc_interval=Interval(float(low), float(high)),
        lc_replicates=tuple(lcs),
    )


def _design(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], gamed_G3: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (R, 3), soft labels (R,) and weights (R,) from p, length gap, difficulty."""
    import numpy as np

    p_N, delta_N, difficulty_N = rows
    spread = delta_N.std(ddof=1)
    # Without spread: the limit for spread -> 0.
    x1_N = np.tanh(delta_N / spread) if spread > 0 else np.sign(delta_N)
    x_N3 = np.column_stack([x1_N, difficulty_N, np.ones_like(p_N)])
    x_G3 = gamed_G3 * [1.0, 1.0, 0.0]
    x_G3[:, 0] = np.tanh(x_G3[:, 0])
    weight_R = np.repeat([_GAMED_WEIGHT, 1.0], [len(x_G3), len(x_N3)])
    return np.concatenate([x_G3, x_N3]), np.concatenate([gamed_G3[:, 2], p_N]), weight_R


def _fitted_lc(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], gamed_G3: np.ndarray, c: float
) -> float:
    import numpy as np
    from scipy.special import expit

    _, b2, b3 = _fit(*_design(rows, gamed_G3), c, np.random.RandomState(123))
    return float(100 * expit(b2 * rows[2] + b3).mean())


def _cross_validated_c(x_R3: np.ndarray, p_R: np.ndarray, weight_R: np.ndarray) -> float:
    import numpy as np
    from scipy.special import expit
    from sklearn.model_selection import GroupKFold

    grid_K = np.logspace(-4, 4, 10)
    loss_FK = np.zeros((_FOLDS, len(grid_K)))
    splits = GroupKFold(_FOLDS).split(x_R3, groups=np.arange(len(p_R)))
    for fold, (train, test) in enumerate(splits):
        # One random stream over the grid: each fit continues where the previous one stopped.
        random_state = np.random.RandomState(123)
        for k, c in enumerate(grid_K):
            b_3 = _fit(x_R3[train], p_R[train], weight_R[train], c, random_state)
            q = np.clip(expit(x_R3[test] @ b_3), 1e-15, 1 - 1e-15)
            loss = p_R[test] * np.log(q) + (1 - p_R[test]) * np.log(1 - q)
            loss_FK[fold, k] = -(weight_R[test] * loss).mean()
    return float(grid_K[loss_FK.mean(axis=0).argmin()])


def _fit(
    x_R3: np.ndarray,
    p_R: np.ndarray,
    weight_R: np.ndarray,
    c: float,
    random_state: np.random.RandomState,
) -> np.ndarray:
    """Return b1, b2, b3. A soft label is two rows, one of each class, weighted by its share."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    options = {"solver": "liblinear", "l1_ratio": 1.0, "fit_intercept": False, "tol": 1e-4}
    model = LogisticRegression(C=c, random_state=random_state, **options)
    y_2R = np.repeat([1, 0], len(p_R))
    weight_2R = np.concatenate([weight_R * p_R, weight_R * (1 - p_R)])
    return model.fit(np.concatenate([x_R3, x_R3]), y_2R, sample_weight=weight_2R).coef_[0]
