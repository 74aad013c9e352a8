"""ROUGE-1, ROUGE-2 and ROUGE-L of one text against one reference, as summarisation papers do it.

Computed by `rouge_score`, Google's port of ROUGE-1.5.5 (Lin, 2004), with Porter's stemmer. It reads
runs of a-z and 0-9 after lowercasing and nothing else. Decided here:

1. A reference in which it reads nothing has no score: 0 would be a failure to read, not a bad text.
   A prediction in which it reads nothing says nothing, and that is 0.
2. A reference of one word holds no pair of words. Its ROUGE-2 is 0, as in `rouge_score`, although
   no prediction can do better.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


MEASURES = ("rouge1", "rouge2", "rougeL")

_READABLE = re.compile("[a-z0-9]")


def rouge(prediction: str, reference: str) -> dict[str, float] | None:
    """Score one text against its reference.

    Args:
        prediction: The model's text.
        reference: The text it is compared with.

    Returns:
        F measures in percent under `rouge1`, `rouge2` and `rougeL`, or None where the reference
        holds no letter or digit that ROUGE reads.
    """
    fractions = f_measures(prediction, reference)
    if fractions is None:
        return None
    return {measure: 100.0 * fraction for measure, fraction in fractions.items()}


def f_measures(prediction: str, reference: str) -> dict[str, float] | None:
    """Return what `rouge` does, as fractions, so that 2/3 is the float nearest to 2/3."""
    if not _READABLE.search(reference.lower()):
        return None
    scores = _scorer().score(reference, prediction)
    return {measure: float(scores[measure].fmeasure) for measure in MEASURES}


@cache
def _scorer() -> RougeScorer:
    # Imported here because it imports numpy and nltk, and a judge is set up without.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(MEASURES, use_stemmer=True)
