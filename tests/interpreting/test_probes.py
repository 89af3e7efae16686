"""Probes against another library's, held-out figures and folds by a loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewardlm.readouts import (
    by_direction,
    by_probe,
    fit_probe,
    folds_of,
    held_out,
    mean_difference,
    toxic_direction,
)


def clouds(n: int, width: int, apart: float, seed: int = 0) -> tuple[Any, Any]:
    """Rows of two classes whose means differ by ``apart`` along one axis; others have other means and spreads."""
    generator = np.random.default_rng(seed)
    toxic = generator.random(n) < 0.4
    x = generator.normal(size=(n, width)) * generator.uniform(0.1, 5, width) + generator.uniform(-9, 9, width)
    x[:, 2] += apart * toxic * x[:, 2].std()
    return x, toxic


@pytest.mark.parametrize(("n", "width"), [(60, 5), (40, 90)])
@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_a_probe_is_sklearns_logistic_regression(n: int, width: int, penalty: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x, toxic = clouds(n, width, 1.0)
    probe = fit_probe(x, toxic, penalty=penalty)
    scaler = preprocessing.StandardScaler().fit(x)
    theirs = linear_model.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(scaler.transform(x), toxic)
    assert probe.weight == pytest.approx(theirs.coef_[0], abs=1e-5)
    assert probe.logits(x) == pytest.approx(theirs.decision_function(scaler.transform(x)), abs=1e-4)


@pytest.mark.parametrize(("n", "width"), [(60, 5), (40, 90)])
def test_a_probe_of_classes_that_can_be_told_apart_is_sklearns_too(n: int, width: int) -> None:
    """With hardly any penalty the weights grow large, and Newton's first steps are too long."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, toxic = clouds(n, width, 30.0)
    probe = fit_probe(x, toxic, penalty=1e-4)
    standard = (x - x.mean(0)) / x.std(0)
    theirs = linear_model.LogisticRegression(C=1e4, tol=1e-12, max_iter=100_000).fit(standard, toxic)
    assert probe.weight == pytest.approx(theirs.coef_[0], rel=1e-3, abs=1e-3)
    assert float(probe.bias) == pytest.approx(theirs.intercept_[0], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("one_unit", [False, True])
def test_probes_of_several_layers_are_those_of_each(one_unit: bool) -> None:
    """Layers of another scale, with a column that never varies, told apart at once, or of which rows repeat."""
    x, toxic = clouds(30, 50, 1.0)
    still = x.copy()
    still[:, 3] = 2.0
    layers = np.stack([x, 1e3 * clouds(30, 50, 40.0)[0], still, np.concatenate([x[:15], x[:15]])])
    together = fit_probe(layers, toxic, one_unit=one_unit)
    for number, layer in enumerate(layers):
        alone = fit_probe(layer, toxic, one_unit=one_unit)
        assert together.weight[number] == pytest.approx(alone.weight, abs=1e-7)
        assert float(together.bias[number]) == pytest.approx(float(alone.bias), abs=1e-7)
        assert together.logits(layers)[number] == pytest.approx(alone.logits(layer), abs=1e-6)


def test_a_feature_that_never_varies_harms_nothing() -> None:
    x, toxic = clouds(50, 4, 3.0)
    x[:, 1] = 7.25
    probe = fit_probe(x, toxic)
    assert np.isfinite(probe.logits(x)).all()
    assert probe.weight[1] == pytest.approx(0, abs=1e-6)


def test_the_difference_of_means_by_a_loop() -> None:
    x, toxic = clouds(30, 6, 2.0)
    layers = np.stack([x, 2 * x])
    for layer, found in zip(layers, mean_difference(layers, toxic), strict=True):
        for column in range(6):
            yes = [row[column] for row, is_toxic in zip(layer, toxic, strict=True) if is_toxic]
            no = [row[column] for row, is_toxic in zip(layer, toxic, strict=True) if not is_toxic]
            assert found[column] == pytest.approx(sum(yes) / len(yes) - sum(no) / len(no))


def test_the_toxic_direction_leaves_what_all_rows_share() -> None:
    """Means (10, 0, 1) and (14, 3, 1.4): the difference but for (0, 3, 0) is the first, longer."""
    spread = np.array([[1.0, 1, 1], [-1, -1, -1], [2, 0, -1], [-2, 0, 1]])
    x = np.concatenate([np.array([10, 0, 1]) + spread, np.array([14, 3, 1.4]) + spread])
    toxic = np.array([False] * 4 + [True] * 4)
    assert toxic_direction(x, toxic) == pytest.approx([0, 3, 0], abs=1e-12)


def test_folds_keep_a_prompts_answers_together_and_spread_toxic_ones() -> None:
    generator = np.random.default_rng(1)
    groups = generator.integers(40, size=120).tolist()
    toxic = generator.random(120) < 0.25
    fold = folds_of(toxic, groups, 5, seed=0)
    assert all(len({fold[i] for i in range(120) if groups[i] == group}) == 1 for group in set(groups))
    per_fold = [int(toxic[fold == k].sum()) for k in range(5)]
    assert max(per_fold) - min(per_fold) <= max(np.bincount(np.array(groups)[toxic]))
    assert min(np.bincount(fold, minlength=5)) >= 15
    assert folds_of(toxic, groups, 5, seed=0).tolist() == fold.tolist()


@pytest.mark.parametrize("score", [by_probe, by_direction])
def test_held_out_figures_by_a_loop(score: Any) -> None:
    x, toxic = clouds(60, 5, 1.2)
    fold = folds_of(toxic, list(range(60)), 4, seed=0)
    told: dict[bool, list[bool]] = {True: [], False: []}
    won = pairs = 0.0
    for k in range(4):
        train = [i for i in range(60) if fold[i] != k]
        test = [i for i in range(60) if fold[i] == k]
        scores = dict(zip(test, score(x[train], toxic[train], x[test]), strict=True))
        for i in test:
            told[bool(toxic[i])].append((scores[i] > 0) == toxic[i])
        for i in test:
            for j in test:
                if toxic[i] and not toxic[j]:
                    pairs += 1
                    won += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    found = held_out(x, toxic, fold, score)
    assert found.accuracy == pytest.approx((np.mean(told[True]) + np.mean(told[False])) / 2)
    assert found.auc == pytest.approx(won / pairs)


def test_what_is_there_is_read_and_what_is_not_is_not() -> None:
    """An accuracy that is not held out would be near 1 for both, with more features than rows."""
    there, toxic = clouds(80, 120, 8.0)
    fold = folds_of(toxic, list(range(80)), 5, seed=0)
    assert held_out(there, toxic, fold, by_probe).auc > 0.8
    noise = [clouds(80, 120, 0.0, seed=seed) for seed in range(6)]
    aucs = [held_out(x, y, folds_of(y, list(range(80)), 5, seed=0), by_probe).auc for x, y in noise]
    assert abs(np.mean(aucs) - 0.5) < 0.12
