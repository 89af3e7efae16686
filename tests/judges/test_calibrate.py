"""Calibration against known truths: generated probabilities, scikit-learn, and the fold into a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from rewardlm.judges.calibrate import MINIMUM, Calibration, fit, fold, weigh


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
    peer = IsotonicRegression(out_of_bounds="clip").fit(expit(logits), labels, sample_weight=weights)
    grid = np.linspace(0, 1, 101)
    assert np.interp(grid, found.x, found.y) == pytest.approx(peer.predict(grid), abs=1e-9)


@pytest.mark.parametrize("kind", ["platt", "temperature", "isotonic"])
def test_too_few_texts_or_one_answer_leave_a_label_alone(kind: str) -> None:
    few = np.linspace(-1, 1, MINIMUM - 1)
    assert fit(kind, few, (few > 0).astype(float), np.ones(len(few))) is None
    many = np.linspace(-1, 1, MINIMUM)
    assert fit(kind, many, np.ones(MINIMUM), np.ones(MINIMUM)) is None


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
    probabilities = draw.random(400)
    labels = (draw.random(400) < probabilities**3).astype(float)
    found = fit("isotonic", logit(probabilities), labels, np.ones(400))
    assert found is not None
    after = np.interp(probabilities, found.x, found.y)
    assert np.mean((after - labels) ** 2) < np.mean((probabilities - labels) ** 2)


def test_sources_count_alike_and_those_that_tell_nothing_do_not_count(draw: np.random.Generator) -> None:
    sizes = {"tweets": 4 * MINIMUM, "posts": MINIMUM, "only hate": 3 * MINIMUM, "few": MINIMUM - 1}
    sources = [name for name, size in sizes.items() for _ in range(size)]
    targets = np.concatenate([draw.permutation(np.arange(size) % 2) for size in sizes.values()]).astype(float)
    targets[[name == "only hate" for name in sources]] = 1.0
    evenly, by_text = (weigh(sources, targets, evenly=choice) for choice in (True, False))
    total = {name: evenly[[source == name for source in sources]].sum() for name in sizes}
    assert total == pytest.approx({"tweets": 1.0, "posts": 1.0, "only hate": 0.0, "few": 0.0})
    assert set(by_text[: 5 * MINIMUM]) == {1.0}
    assert not by_text[5 * MINIMUM :].any()
    # A judge of one small source is calibrated by it all the same.
    assert weigh(["few"] * 3, np.asarray([0.0, 1.0, 0.3]), evenly=True) == pytest.approx([1 / 3] * 3)


def test_a_source_of_one_class_does_not_make_a_judge_surer(draw: np.random.Generator) -> None:
    """Where people disagree logits are twice too large; a source of nothing but obvious hate can't hide it."""
    logits = draw.normal(0, 2, 4000)
    labels = (draw.random(4000) < expit(logits / 2)).astype(float)
    hate = np.full(2000, 6.0)
    both, truth = np.concatenate([logits, hate]), np.concatenate([labels, np.ones(2000)])
    weights = weigh(["people"] * 4000 + ["stereotypes"] * 2000, truth, evenly=True)
    found = fit("temperature", both, truth, weights)
    assert found is not None
    assert found.scale == pytest.approx(0.5, rel=0.06)
