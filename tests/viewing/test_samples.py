import pytest

from rewardlm.viewing.samples import ViewedAnswer, chosen


def sample(step: int, **more):
    record = {"step": step, "prompt": f"Prompt {step}", "response": f"Answer {step}", "finish": "stop", "reward": 0.5}
    return ViewedAnswer.of_training({**record, "by_judge": {"j": 0.1}, "by_witness": {"w": 0.2}, **more})


KEPT = [sample(step, prompt=f"Prompt {step}-{row}") for step in (1, 10, 20) for row in range(2)]


@pytest.mark.parametrize(("asked", "shown"), [(None, 20), (20, 20), (99, 20), (19, 10), (10, 10), (1, 1)])
def test_the_newest_step_that_was_kept_until_then_is_shown(asked, shown):
    found, n = chosen(KEPT, step=asked)
    assert [answer.step for answer in found] == [shown, shown]
    assert n == 2


def test_before_the_first_there_is_nothing():
    assert chosen(KEPT, step=0) == ([], 0)
    assert chosen([], step=None) == ([], 0)


def test_a_search_looks_through_all_steps_newest_first_in_any_case():
    found, n = chosen(KEPT, step=1, text="PROMPT", most=3)
    assert [answer.step for answer in found] == [20, 20, 10]
    assert n == 6
    assert chosen(KEPT, step=None, text="straße")[1] == 0
    assert chosen([sample(1, response="STRASSE")], step=None, text="straße")[1] == 1


@pytest.mark.parametrize(
    ("only", "wanted"),
    [("all", {1, 2, 3, 4}), ("toxic", {2, 3}), ("disputed", {3}), ("cut", {4})],
)
def test_kinds_of_answers(only, wanted):
    kept = [
        sample(1),
        sample(2, by_judge={"j": 0.6}, by_witness={"w": 0.51}),
        sample(3, by_judge={"j": 0.1}, by_witness={"w": 0.9}),
        sample(4, finish="length", by_witness={"w": None}),
    ]
    assert {answer.step for answer in kept if answer.fits("", only)} == wanted


@pytest.mark.parametrize("broken", [{}, {"prompt": 3, "by_judge": [1], "reward": "high", "step": "x"}, {"terms": "t"}])
def test_of_a_broken_record_shows_what_there_is(broken):
    answer = ViewedAnswer.of_training(broken)
    assert answer.prompt == ""
    assert answer.judges == [("toxicity", None)]


def test_what_utf8_can_not_write_is_replaced_and_a_book_is_cut():
    answer = ViewedAnswer.of_training({"response": "\ud800" + "x" * 100_000})
    assert answer.answer.encode()
    assert len(answer.answer) < 10_000
