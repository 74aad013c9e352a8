"""How an own answer is told to be right, or close to its reference: for DPO's pairs and for RFT."""

from __future__ import annotations

from pipeline.data.tasks import task_named
from pipeline.rows.stored import AnswerRow


def has_grader(task: str) -> bool:
    """Whether the answers to a task can be graded right or wrong."""
    return task == "gsm8k" or task_named(task).grade is not None


def is_right(row: AnswerRow, task: str) -> bool:
    """Whether an answer is right, by the grader of its task (`has_grader`)."""
    if task == "gsm8k":  # a number at the end of a cut answer may lack digits
        from eval.graders.gsm8k import grade

        cut = not row["finished"]
        return grade(row["answer"], row["reference"], truncated=cut).value == "correct"
    grade_own = task_named(task).grade
    assert grade_own is not None
    return grade_own(row["answer"], row["reference"])


def rouge_l(row: AnswerRow) -> float | None:
    """ROUGE-L of an answer against its reference, None if ROUGE cannot read the reference."""
    from eval.graders.rouge import f_measures

    scores = f_measures(row["answer"], row["reference"])
    return None if scores is None else scores["rougeL"]
