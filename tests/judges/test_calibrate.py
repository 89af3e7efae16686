"""Calibration against known truths: generated probabilities, scikit-learn, and the fold into a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from rewardlm.judges.calibrate import ISOTONIC_MINIMUM, MINIMUM, SOURCE_MINIMUM, fit, fold, text_weights
from rewardlm.scoring.record import Calibration


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def test_platt_finds_the_scale_and_shift_that_made_the_labels(draw: np.random.Generator) -> None:
    logits = draw.normal(0, 2, 20_000)
    targets = expit(0.5 * logits - 1.0)  # soft: the exact probabilities
    found = fit("platt", logits, targets, np.ones(len(logits)))
    assert found is not None
    assert found.scale == pytest.approx(0.5, abs=1e-3)
    assert found.shift == pytest.approx(-1.0, abs=1e-3)


def test_temperature_has_no_shift(draw: np.random.Generator) -> None:
    logits = draw.normal(0, 2, 20_000)
    labels = (draw.random(len(logits)) < expit(logits / 3)).astype(float)
    found = fit("temperature", logits, labels, np.ones(len(logits)))
    assert found is not None
    assert found.shift == 0.0
    assert found.scale == pytest.approx(1 / 3, rel=0.05)


def test_weights_count_as_repeated_texts(draw: np.random.Generator) -> None:
    logits = draw.normal(0, 1, 300)
    targets = draw.random(300)
    weights = draw.integers(0, 4, 300)
    one = fit("platt", logits, targets, weights.astype(float))
    two = fit("platt", np.repeat(logits, weights), np.repeat(targets, weights), np.ones(weights.sum()))
    assert one is not None
    assert two is not None
    assert (one.scale, one.shift) == pytest.approx((two.scale, two.shift), abs=1e-3)


def test_isotonic_is_scikit_learns(draw: np.random.Generator) -> None:
    logits = np.round(draw.normal(0, 2, 500), 1)  # with ties
    labels = (draw.random(500) < expit(logits) ** 2).astype(float)
    weights = draw.random(500) + 0.1
    found = fit("isotonic", logits, labels, weights)
    assert found is not None
    # What is linear comes first, as Platt's own, so that tools that know nothing else have that.
    platt = fit("platt", logits, labels, weights)
    assert platt is not None
    assert (found.scale, found.shift) == (platt.scale, platt.shift)
    scaled = expit(found.scale * logits + found.shift)
    peer = IsotonicRegression(out_of_bounds="clip").fit(scaled, labels, sample_weight=weights).predict(scaled)
    # Centred: each of the peer's steps is one point, at the weighted mean of what it holds.
    steps = np.unique(peer.round(9))
    assert len(found.x) == len(steps) + 2
    for step, x, y in zip(steps, found.x[1:-1], found.y[1:-1], strict=True):
        held = np.isclose(peer, step, atol=1e-8)
        assert x == pytest.approx(np.average(scaled[held], weights=weights[held]), abs=1e-9)
        if x not in (found.x[1], found.x[-2]):
            assert y == pytest.approx(step, abs=1e-9)
    # The outermost only move inwards.
    assert steps[0] <= found.y[1] <= found.y[2]
    assert found.y[-3] <= found.y[-2] <= steps[-1]
    assert (found.x[0], found.y[0], found.x[-1], found.y[-1]) == (0, 0, 1, 1)


def test_isotonic_keeps_the_order_and_is_never_certain(draw: np.random.Generator) -> None:
    logits = draw.normal(0, 3, 600)
    labels = (draw.random(600) < expit(2 * logits)).astype(float)  # at both ends there are texts of one kind alone
    found = fit("isotonic", logits, labels, np.ones(600))
    assert found is not None
    scaled = np.unique(expit(found.scale * logits + found.shift))
    after = np.interp(scaled, found.x, found.y)
    assert (np.diff(after) > 0).all()
    # Below all texts of the other kind, n are of one: half of Beta(1/2, n + 1/2) lies below the first point.
    n = int((logits < logits[labels == 1].min()).sum())
    draws = draw.beta(0.5, n + 0.5, 200_000)
    assert (draws < found.y[1]).mean() == pytest.approx(0.5, abs=0.01)
    assert found.y[1] > 0.2 / n
    assert 0.9 < found.y[-2] < 1


@pytest.mark.parametrize("kind", ["platt", "temperature", "isotonic"])
def test_too_few_texts_or_one_answer_leave_a_label_alone(kind: str) -> None:
    few = np.linspace(-1, 1, MINIMUM - 1)
    assert fit(kind, few, (few > 0).astype(float), np.ones(len(few))) is None
    many = np.linspace(-1, 1, MINIMUM)
    assert fit(kind, many, np.ones(MINIMUM), np.ones(MINIMUM)) is None


def test_a_lonely_text_at_the_end_does_not_lift_the_others() -> None:
    logits = np.linspace(-3, 3, 600)
    labels = (logits > 1).astype(float)
    labels[1] = 1.0  # the lowest text is harmless, alone, and the next is not
    found = fit("isotonic", logits, labels, np.ones(600))
    assert found is not None
    harmless = labels[1:400].mean()
    assert found.y[1] == pytest.approx(found.y[2])
    assert found.y[2] == pytest.approx(harmless, abs=1e-3)


def test_few_texts_make_no_curve(draw: np.random.Generator) -> None:
    logits = draw.normal(0, 2, ISOTONIC_MINIMUM)
    labels = (draw.random(len(logits)) < expit(logits)).astype(float)
    weights = np.ones(len(logits))
    enough = fit("isotonic", logits, labels, weights)
    assert enough is not None
    assert enough.kind == "isotonic"
    weights[0] = 0.0
    assert fit("isotonic", logits, labels, weights) == fit("platt", logits, labels, weights)


def test_without_a_shift_isotonic_has_none_either(draw: np.random.Generator) -> None:
    logits = draw.normal(0, 2, 500)
    labels = (draw.random(500) < expit(logits - 1)).astype(float)
    found, temperature = (
        fit("isotonic", logits, labels, np.ones(500), shift=False),
        fit("temperature", logits, labels, np.ones(500)),
    )
    assert found is not None
    assert temperature is not None
    assert (found.scale, found.shift) == (temperature.scale, 0.0)


def test_the_head_gives_calibrated_logits_and_other_labels_stay() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 3)
    states = torch.randn(7, 5)
    before = head(states).detach()
    fold(
        head, ["a", "b", "c"], {"b": Calibration("platt", 0.5, -1.0), "c": Calibration("isotonic", x=(0, 1), y=(0, 1))}
    )
    after = head(states).detach()
    torch.testing.assert_close(after[:, 1], 0.5 * before[:, 1] - 1.0)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])


def test_isotonic_lowers_the_error_that_it_was_made_for(draw: np.random.Generator) -> None:
    """A property: on the texts it was fitted to, squared error can't rise."""
    probabilities = draw.random(600)
    labels = (draw.random(600) < probabilities**3).astype(float)
    found = fit("isotonic", logit(probabilities), labels, np.ones(600))
    assert found is not None
    after = np.interp(expit(found.scale * logit(probabilities) + found.shift), found.x, found.y)
    assert np.mean((after - labels) ** 2) < np.mean((probabilities - labels) ** 2)


def test_sources_count_alike_and_those_that_tell_nothing_do_not_count(draw: np.random.Generator) -> None:
    sizes = {
        "tweets": 4 * SOURCE_MINIMUM,
        "posts": SOURCE_MINIMUM,
        "only hate": 3 * SOURCE_MINIMUM,
        "few": SOURCE_MINIMUM - 1,
    }
    sources = [name for name, size in sizes.items() for _ in range(size)]
    targets = np.concatenate([draw.permutation(np.arange(size) % 2) for size in sizes.values()]).astype(float)
    targets[[name == "only hate" for name in sources]] = 1.0
    evenly, by_text = (text_weights(sources, targets, evenly=choice) for choice in (True, False))
    total = {name: evenly[[source == name for source in sources]].sum() for name in sizes}
    assert total == pytest.approx({"tweets": 1.0, "posts": 1.0, "only hate": 0.0, "few": 0.0})
    assert set(by_text[: 5 * SOURCE_MINIMUM]) == {1.0}
    assert not by_text[5 * SOURCE_MINIMUM :].any()
    # A judge of one small source is calibrated by it all the same.
    assert text_weights(["few"] * 3, np.asarray([0.0, 1.0, 0.3]), evenly=True) == pytest.approx([1 / 3] * 3)


def test_a_source_of_one_class_does_not_make_a_judge_surer(draw: np.random.Generator) -> None:
    """Where people disagree logits are twice too large; a source of nothing but obvious hate can't hide it."""
    logits = draw.normal(0, 2, 4000)
    labels = (draw.random(4000) < expit(logits / 2)).astype(float)
    hate = np.full(2000, 6.0)
    both, truth = np.concatenate([logits, hate]), np.concatenate([labels, np.ones(2000)])
    weights = text_weights(["people"] * 4000 + ["stereotypes"] * 2000, truth, evenly=True)
    found = fit("temperature", both, truth, weights)
    assert found is not None
    assert found.scale == pytest.approx(0.5, rel=0.06)
