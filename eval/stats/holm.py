"""Multiple comparisons: Holm's adjusted p-values.

Without them, one in three tables of seven equal arms would show a significant difference.
"""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return each p-value adjusted for all of them: Holm (1979), Scand. J. Statistics 6, p. 65.

    The smallest of m is multiplied by m, the next by m - 1, and so on, each at least the previous.
    If none of the m differences is real, any is below 0.05 in at most 5 % of cases.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
