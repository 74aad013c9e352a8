"""ROUGE against values that can be worked out by hand."""

import pytest
from conftest import imported_by
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.graders.rouge import f_measures, rouge

REFERENCE = "the cat sat on the mat"

texts = st.text(alphabet="ab猫 .\n", max_size=12)


@pytest.mark.parametrize(
    ("prediction", "rouge1", "rouge2", "rouge_l"),
    [
        pytest.param("the cat on the mat", 10 / 11, 2 / 3, 10 / 11, id="one-word-missing"),
        pytest.param("the mat sat on the cat", 1.0, 4 / 5, 2 / 3, id="other-order"),
        pytest.param("the the the the", 2 / 5, 0.0, 2 / 5, id="a-word-counts-once-a-match"),
        pytest.param("cat", 2 / 7, 0.0, 2 / 7, id="one-word"),
    ],
)
def test_rouge_by_hand(prediction, rouge1, rouge2, rouge_l):
    """F = 2 * common / (both sizes), of the reference's 6 words and 5 pairs of words.

    "the cat on the mat": 5 common words, 10/11; of 4 pairs all but "cat on", 6/9; in order 5.
    "the mat sat on the cat": all 6; of 5 pairs all but "mat sat", 8/10; in order "the sat on the",
    8/12. Four times "the": the reference has 2, 4/10. "cat": 2/7.
    """
    scores = rouge(prediction, REFERENCE)
    expected = {"rouge1": 100 * rouge1, "rouge2": 100 * rouge2, "rougeL": 100 * rouge_l}
    assert scores == pytest.approx(expected, abs=1e-12)


def test_case_punctuation_and_line_breaks_are_not_read():
    identical = {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}
    assert rouge("The cat:\nsat -- on the MAT!", REFERENCE) == identical


def test_words_of_more_than_three_letters_are_stemmed():
    """Porter's stemmer takes jumping and dogs to jump and dog; its is too short to be looked at."""
    assert rouge("jumping dogs", "jump dog") == {"rouge1": 100.0, "rouge2": 100.0, "rougeL": 100.0}
    assert rouge("its", "it") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_disjoint_texts_score_0():
    assert rouge("a dog", "my cat") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


@pytest.mark.parametrize("prediction", ["", " \n", "...", "猫が座った"])
def test_a_model_that_says_nothing_scores_0(prediction):
    assert rouge(prediction, REFERENCE) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


@pytest.mark.parametrize("prediction", ["", "a cat", "猫が座った"])
@pytest.mark.parametrize("reference", ["", " \n", "?!", "_", "🐈 …", "\u00b2", "。"])
def test_a_reference_in_which_rouge_reads_nothing_gives_no_score(prediction, reference):
    """Not 100 for the same text, and not 0 for another: a failure to read is no score."""
    assert rouge(prediction, reference) is None
    assert f_measures(prediction, reference) is None


@pytest.mark.parametrize(
    "reference", ["7", "猫 A", "\u212a", "naïve", "猫", "é", "\uff11\uff18", "\u0661"]
)
def test_one_letter_or_digit_makes_a_reference_readable(reference):
    """The third is the Kelvin sign, which lowercases to k."""
    scores = rouge(reference, reference)
    assert scores is not None
    assert (scores["rouge1"], scores["rougeL"]) == (100.0, 100.0)


def test_a_reference_of_one_word_has_no_pairs_and_a_rouge_2_of_0():
    assert rouge("yes", "yes") == {"rouge1": 100.0, "rouge2": 0.0, "rougeL": 100.0}


def test_fractions_are_the_percentages_before_they_are_multiplied():
    assert f_measures("the cat sat", REFERENCE) == {
        "rouge1": 2 / 3,
        "rouge2": 2 * 1.0 * 0.4 / 1.4,
        "rougeL": 2 / 3,
    }


@settings(deadline=None)
@given(texts, texts)
def test_scores_are_percentages_and_do_not_depend_on_which_text_is_the_reference(one, other):
    there, back = rouge(one, other), rouge(other, one)
    assert (there is None) == (not set("ab猫") & set(other))
    if there is not None:
        assert all(0.0 <= value <= 100.0 and type(value) is float for value in there.values())
        assert back is None or back == there


@pytest.mark.parametrize(
    ("prediction", "reference", "rouge1", "rouge2", "rouge_l"),
    [
        pytest.param("Кошка спит 2024", "Собака ест 2024", 1 / 3, 0.0, 1 / 3, id="one-year-shared"),
        pytest.param("Größe", "Grüße", 0.0, 0.0, 0.0, id="umlauts"),
        pytest.param("Die Größe zählt", "die grösse zählt", 2 / 3, 0.0, 2 / 3, id="sharp-s"),
        pytest.param("cafe\u0301 noir", "CAFÉ noir", 1.0, 1.0, 1.0, id="accent-apart"),
        pytest.param("مرحبا بكم", "مرحبا بك", 1 / 2, 0.0, 1 / 2, id="arabic"),
        pytest.param("हिन्दी भाषा", "हिन्दी भाष", 1 / 2, 0.0, 1 / 2, id="vowel-signs"),
        pytest.param("안녕 세계", "안녕 친구", 1 / 2, 0.0, 1 / 2, id="korean-has-spaces"),
        pytest.param("猫が座った", "犬が座った", 4 / 5, 3 / 4, 4 / 5, id="japanese"),
        pytest.param("我爱你", "你爱我", 1.0, 0.0, 1 / 3, id="chinese-in-another-order"),
        pytest.param("เด็ก", "เด็ง", 2 / 3, 1 / 2, 2 / 3, id="thai-marks-stay-with-their-letter"),
        pytest.param("\uff11\uff18 \uff21\uff22", "18 ab", 1.0, 1.0, 1.0, id="fullwidth"),
        pytest.param("the cats 🐈 sat…", "the cat — sat", 1.0, 1.0, 1.0, id="symbols-are-not-read"),
    ],
)
def test_other_scripts_by_hand(prediction, reference, rouge1, rouge2, rouge_l):
    """F = 2 * common / (both sizes). Words where a script has spaces, else characters.

    Umlauts: of two different words nothing is common. Japanese: of 5 characters 4, of 4 pairs 3.
    Thai: เ, ด็ and the last letter, so of 3 tokens 2, of 2 pairs 1.
    """
    scores = rouge(prediction, reference)
    expected = {"rouge1": 100 * rouge1, "rouge2": 100 * rouge2, "rougeL": 100 * rouge_l}
    assert scores == pytest.approx(expected, abs=1e-12)


english_texts = st.text(alphabet="aBz09 .,'_-\n\u2019“”\u2013—…½²™€🐈", max_size=40)


@settings(deadline=None)
@given(english_texts, english_texts)
def test_english_scores_as_with_the_librarys_own_tokens(prediction, reference):
    """Whatever signs stand around the words."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = rouge(prediction, reference)
    if scores is not None:
        published = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        theirs = published.score(reference, prediction)
        assert scores == {name: 100.0 * float(score.fmeasure) for name, score in theirs.items()}


def test_importing_rouge_imports_no_library():
    loaded = imported_by("eval.graders.rouge")
    assert "eval" in loaded and not {"rouge_score", "nltk", "numpy", "absl", "regex"} & loaded
