"""Rankings: the measures are those that people compute by hand, and a comparison is their mean."""

from __future__ import annotations

from math import log2

import pytest

from tasks.domain.rankings import Question, compare_answers, ndcg, overlap, parse_question, recall, top

TEN = [f"r{number}" for number in range(10)]


def test_the_first_ten_records_count_each_once_at_its_best_place() -> None:
    assert top(["a", "b", "a", "c"]) == ("a", "b", "c")
    assert len(top(f"r{number}" for number in range(30))) == 10


def test_recall_is_the_share_of_the_right_records_and_can_always_reach_one() -> None:
    assert recall(["a", "x", "b"], {"a", "b", "c", "d"}) == 0.5
    assert recall(TEN, {f"r{number}" for number in range(500)}) == 1.0
    assert recall([], {"a"}) == 0.0
    assert recall([*TEN, "a"], {"a"}) == 0.0


def test_ndcg_is_one_for_the_best_order_and_less_the_lower_the_right_records_stand() -> None:
    assert ndcg(["a", "b", "x"], {"a", "b"}) == 1.0
    assert ndcg(["x", "a"], {"a"}) == pytest.approx(1 / log2(3))
    best = 1 + 1 / log2(3)
    assert ndcg(["x", "a", "b"], {"a", "b"}) == pytest.approx((1 / log2(3) + 1 / 2) / best)
    assert ndcg(["x"], {"a"}) == 0.0


def test_two_answers_have_in_common_what_stands_in_both() -> None:
    assert overlap(["a", "b"], ["b", "a"]) == 1.0
    assert overlap(["a", "b"], ["b", "c"]) == 0.5
    assert overlap(TEN, ["r0"]) == 0.1
    assert overlap([], ["a"]) == 0.0
    assert overlap([], []) == 1.0


def test_a_comparison_is_the_mean_over_the_questions_whose_records_are_known() -> None:
    questions = [
        Question("1", "one", "semantic", frozenset({"a"})),
        Question("2", "two", "filter", frozenset({"b"})),
        Question("3", "three"),
    ]
    answers = {"first": [["a"], ["x", "b"], ["c"]], "next": [["a"], ["y"], ["d"]]}
    kinds, rows = compare_answers(questions, answers)
    assert list(kinds) == ["all", "semantic", "filter"]
    assert (kinds["all"]["questions"], kinds["all"]["judged"]) == (3, 2)
    assert kinds["all"]["overlap"] == pytest.approx(1 / 3)
    assert kinds["all"]["first"] == {"recall": 1.0, "ndcg": pytest.approx((1 + 1 / log2(3)) / 2)}
    assert kinds["all"]["next"] == {"recall": 0.5, "ndcg": 0.5}
    assert kinds["semantic"]["next"] == {"recall": 1.0, "ndcg": 1.0}
    assert [row["qid"] for row in rows] == ["1", "2", "3"]
    assert "first" not in rows[2]


def test_questions_of_which_nobody_says_what_is_right_are_compared_by_what_they_have_in_common() -> None:
    kinds, _ = compare_answers([Question("1", "one")], {"first": [["a"]], "next": [["a"]]})
    assert kinds == {"all": {"questions": 1, "overlap": 1.0, "judged": 0}}


def test_a_line_of_a_file_of_questions_is_a_question_or_is_refused() -> None:
    line = {"qid": "d01", "question": "Which?", "kind": "mixed", "relevant": ["a", "b"], "n_relevant": 2}
    assert parse_question(line) == Question("d01", "Which?", "mixed", frozenset({"a", "b"}))
    assert parse_question({"qid": 1, "question": "Which?"}) == Question("1", "Which?")
    for wrong in ({"qid": "1"}, {"question": "Which?"}, {"qid": "1", "question": "Which?", "relevant": "a"}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            parse_question(wrong)
