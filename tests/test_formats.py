"""Numbers as text: what is not there is a dash, and no rounding changes what a number says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardlm import formats


def test_by_hand() -> None:
    assert formats.number(0.1314) == "0.131"
    assert formats.number(1234567, ",") == "1,234,567"
    assert formats.percent(0.13) == "13.0 %"
    assert formats.points(-0.031) == "−3.1"
    assert formats.points(0.0001) == "±0.0"
    assert formats.signed(-0.0001, 2) == "−0.00"
    assert formats.signed_as_shown(-0.0001, 2) == "±0.00"
    assert formats.interval_of_points([-0.05, -0.0001]) == "−5.0 to −0.0"
    assert formats.interval_of_shares((0.201, 0.51)) == "20.1 % to 51.0 %"
    assert formats.interval_in_column((0.201, 0.51)) == "20.1 – 51.0"
    assert formats.interval_in_terminal((-0.05, 0.01), "+.3f") == "-0.050 +0.010"
    assert formats.p_text(0.0123) == "p = 0.012"
    assert formats.p_values_text(0.012, 0.036) == "p = 0.012, adjusted p = 0.036"
    assert formats.p_values_text(0.012, 0.012) == formats.p_values_text(0.012, None) == "p = 0.012"


@pytest.mark.parametrize("nothing", [None, (), (None, None), (0.1, None)])
def test_what_is_not_known_is_a_dash(nothing: tuple[float | None, ...] | None) -> None:
    for write in (formats.interval_of_points, formats.interval_of_shares, formats.interval_in_column):
        assert write(nothing) == "—"
    assert formats.interval_in_terminal(nothing) == "–"
    for of_one in (formats.number, formats.percent, formats.points, formats.p_number, formats.p_text):
        assert of_one(None) == "—"


def test_p_just_below_5_percent_is_seen_to_be() -> None:
    shown = {0.0497: "p = 0.0497", 0.0499999: "p = 0.0499999", 0.05: "p = 0.050", 0.0004: "p < 0.001", 0.2: "p = 0.200"}
    assert {p_value: formats.p_text(p_value) for p_value in shown} == shown


@given(st.floats(-1, 1))
def test_an_end_has_its_own_sign_and_a_change_that_of_what_is_shown(value: float) -> None:
    size = formats.signed(value, 3)[1:]
    assert float(size) == pytest.approx(abs(value), abs=0.0005 + 1e-12)
    assert formats.signed(value, 3)[0] == ("−" if value < 0 else "+" if value > 0 else "±")
    shown = formats.signed_as_shown(value)
    assert (shown[0] == "±") == (float(shown[1:]) == 0)
