import math

import pytest

from rewardlm.reporting.figures import CURVES, training_figures
from rewardlm.viewing.curves import Curves, charts


def test_columns_stay_as_long_as_there_are_steps():
    curves = Curves()
    curves.add({"step": 1, "loss": 2.0, "seconds": 0.5})
    curves.add({"step": 2, "loss": 1.5, "eval_loss": 3.0})
    curves.add({"step": 3, "toxicity_by_witness": {"w": 0.25, "v": None}})
    assert curves.n == 3
    assert curves.columns == {
        "step": [1, 2, 3],
        "seconds": [0.5, None, None],
        "loss": [2.0, 1.5, None],
        "eval_loss": [None, 3.0, None],
        "toxicity_by_witness.w": [None, None, 0.25],
    }
    assert curves.since(2)["loss"] == [None]
    assert curves.last("loss") == 1.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "0.5", True, None, [1], 10**400, {}])
def test_what_is_no_number_is_none_and_what_has_no_step_is_no_row(bad):
    curves = Curves()
    curves.add({"step": bad, "loss": 1.0})
    assert curves.n == 0
    curves.add({"step": 1, "loss": bad, "terms": bad})
    assert curves.n == 1
    assert "loss" not in curves.columns


@pytest.mark.parametrize("value", [0.0, 1.0, -1234567.89, 1e-12, 3.14159265358979, 1e300, -5e-324])
def test_numbers_are_rounded_below_what_an_eye_can_see(value):
    curves = Curves()
    curves.add({"step": 1, "kl": value})
    assert math.isclose(curves.columns["kl"][0], value, rel_tol=1e-5)


def test_every_curve_of_the_report_has_a_chart_and_its_advice():
    record = {"step": 1, "warnings": []}
    for _, keys, _ in CURVES:
        for key in keys:
            section, star, _ = key.partition(".*")
            record[section] = {"name": 0.5} if star else 0.5
    curves = Curves()
    curves.add(record)
    found = charts(set(curves.columns))
    assert {advice for _, advice, _ in training_figures([record, record])} == {chart["advice"] for chart in found}
    assert len(found) == sum(len(keys) for _, keys, _ in CURVES)
    assert len({chart["heading"] for chart in found}) == len(found)


def test_a_run_that_names_a_thousand_judges_does_not_make_a_thousand_charts():
    curves = Curves()
    curves.add({"step": 1, "toxicity_by_witness": {f"w{n}": 0.5 for n in range(1000)}})
    assert len(curves.columns) < 30
