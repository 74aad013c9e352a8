"""ROUGE-1, ROUGE-2 and ROUGE-L of one text against one reference, as in summarisation papers.

Computed by `rouge_score`, Google's port of ROUGE-1.5.5 (Lin, 2004), with Porter's stemmer. Its
default tokens are runs of a-z and 0-9, so in most languages it finds none. Decisions:

1. A token is a run of letters, accents and decimal digits of any script, after lowercasing. Tokens
   of only a-z and 0-9 are those of `rouge_score`, with the same stemming, so English texts score as
   published; other tokens are not stemmed, since Porter's rules are for English.
2. In scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character
   is a token, so ROUGE-2 compares pairs of characters.
3. A reference without tokens has no score: 0 would look like a bad text, although it is the
   reference that cannot be read. A prediction without tokens scores 0.
4. A reference of one token has no bigram. Its ROUGE-2 is 0, as in `rouge_score`, although no
   prediction can do better.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer


MEASURES = ("rouge1", "rouge2", "rougeL")

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


def rouge(prediction: str, reference: str) -> dict[str, float] | None:
    """Score one text against its reference.

    Args:
        prediction: The model's text.
        reference: The text it is compared with.

    Returns:
        F measures in percent under `rouge1`, `rouge2` and `rougeL`, or None if the reference has no
        letter or digit.
    """
    fractions = f_measures(prediction, reference)
    if fractions is None:
        return None
    return {measure: 100.0 * fraction for measure, fraction in fractions.items()}


def f_measures(prediction: str, reference: str) -> dict[str, float] | None:
    """Return the scores of `rouge` as fractions, without the rounding of a factor of 100."""
    if not _tokenizer().tokenize(reference):
        return None
    scores = _scorer().score(reference, prediction)
    return {measure: float(scores[measure].fmeasure) for measure in MEASURES}


@cache
def _scorer() -> RougeScorer:
    # Imported here because it imports numpy and nltk, which setting up a judge must not need.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(MEASURES, tokenizer=_tokenizer())


@cache
def _tokenizer() -> Tokenizer:
    import regex
    from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

    find = regex.compile(
        rf"{_UNSPACED}\p{{M}}*|(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{Nd}}])+"
    ).findall
    english = DefaultTokenizer(use_stemmer=True).tokenize

    class UnicodeTokenizer(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            if text.isascii():
                return english(text)
            # Normalised token by token: on the whole text, NFKC would turn "²" and "½" into digits.
            words = (unicodedata.normalize("NFKC", word) for word in find(text.lower()))
            return [
                token for word in words for token in (english(word) if word.isascii() else [word])
            ]

    return UnicodeTokenizer()
