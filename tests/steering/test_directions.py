"""Directions and subspaces against definitions computed another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from sklearn.linear_model import LogisticRegression

from rewardlm.steering.choose import Tried, best_of, p_value_random
from rewardlm.steering.directions import differences, linear_gate, random_vectors, toxic_subspace, toxic_vector


def rows(n: int = 60, width: int = 12, seed: int = 0) -> tuple[Any, Any, list[str]]:
    rng = np.random.default_rng(seed)
    toxic = np.arange(n) % 3 == 0
    x = rng.normal(size=(n, width)) + 4 * rng.normal(size=width)
    x[toxic, 3] += 5
    return x, toxic, [f"p{row // 4}" for row in range(n)]


def test_the_difference_of_means_is_a_plain_sum() -> None:
    x, toxic, owners = rows()
    got = toxic_vector(x, toxic, owners, "means")
    for column in range(x.shape[1]):
        of = [[x[row, column] for row in range(len(x)) if toxic[row] == kind] for kind in (True, False)]
        assert got[column] == pytest.approx(sum(of[0]) / len(of[0]) - sum(of[1]) / len(of[1]))


@pytest.mark.parametrize("kind", ["means", "pca", "probe"])
def test_each_kind_finds_the_direction_and_has_the_length_of_the_means(kind: Any) -> None:
    x, toxic, owners = rows(400)
    got = toxic_vector(x, toxic, owners, kind)
    assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(toxic_vector(x, toxic, owners, "means")))
    assert got[3] / np.linalg.norm(got) > 0.9


def test_a_probe_is_scikit_learns_logistic_regression() -> None:
    x, toxic, owners = rows(200)
    unit = np.sqrt(((x - x.mean(0)) ** 2).mean())
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit((x - x.mean(0)) / unit, toxic).coef_[0]
    got = toxic_vector(x, toxic, owners, "probe")
    assert got / np.linalg.norm(got) == pytest.approx(theirs / np.linalg.norm(theirs), abs=1e-4)


def test_pca_maximises_the_second_moment_of_the_differences() -> None:
    x, toxic, owners = rows()
    got = toxic_vector(x, toxic, owners, "pca")
    own = differences(x, toxic, owners)
    _, vectors = np.linalg.eigh(own.T @ own)
    assert abs(vectors[:, -1] @ got) == pytest.approx(np.linalg.norm(got))
    # A difference is taken to the harmless answers of the same prompt.
    first = next(row for row in range(len(x)) if toxic[row])
    beside = [row for row in range(len(x)) if owners[row] == owners[first] and not toxic[row]]
    assert own[0] == pytest.approx(x[first] - x[beside].mean(0))


def test_a_gate_is_the_probes_decision_in_the_states_units() -> None:
    from rewardlm.readouts import fit_probe

    x, toxic, _ = rows()
    weight, bias = linear_gate(x, toxic)
    assert x @ weight + bias == pytest.approx(fit_probe(x, toxic).logits(x))


def test_the_toxic_subspace_is_that_of_centred_differences() -> None:
    """Uppaal et al. 2024: against the eigenvectors of the differences' second moment, after projecting the mean out."""
    rng = np.random.default_rng(5)
    harmless = rng.normal(size=(50, 10)) + 6 * np.eye(10)[0]
    toxic = (
        harmless + rng.normal(size=(50, 10)) * 0.1 + np.outer(rng.normal(size=50), np.eye(10)[4]) * 3 + np.eye(10)[0]
    )
    basis = toxic_subspace(toxic, harmless, 2)
    mean = harmless.mean(0)
    projector = np.eye(10) - np.outer(mean, mean) / (mean @ mean)
    centred = (toxic - harmless) @ projector
    _, vectors = np.linalg.eigh(centred.T @ centred)
    assert subspace_angles(basis, vectors[:, -2:]) == pytest.approx([0, 0], abs=1e-6)
    assert basis.T @ basis == pytest.approx(np.eye(2))
    assert mean @ basis == pytest.approx([0, 0], abs=1e-8)
    assert abs(basis[4, 0]) > 0.95


def test_random_vectors_are_as_long_and_point_anywhere() -> None:
    found = random_vectors(2.5, 200, 500, 0)
    assert np.linalg.norm(found, axis=1) == pytest.approx(2.5)
    assert abs(found.mean()) < 0.01


def tried(strength: float, share: float | None, perplexity: float | None, mean: float = 0.1) -> Tried:
    return Tried(strength, 10, 10, share, None, mean, perplexity)


def test_the_least_toxic_of_the_fluent_is_chosen() -> None:
    plain = tried(0, 0.5, 10)
    options = [tried(0.5, 0.3, 11), tried(1, 0.1, 12), tried(2, 0.0, 40), tried(4, None, 11)]
    assert best_of(options, plain, 1.25) == (1, True)
    assert best_of(options, plain, 10) == (2, True)
    assert best_of([tried(1, 0.1, 30), tried(2, 0.0, 90)], plain, 1.25) == (0, False)
    assert best_of([tried(2, 0.1, 10, 0.2), tried(1, 0.1, 10, 0.2), tried(3, 0.1, 10, 0.3)], plain, 1.25) == (1, True)


def test_a_direction_is_compared_with_random_ones_as_the_best_of_those_tried() -> None:
    random = [tried(1, share, 10) for share in (0.1, 0.2, 0.2, 0.3)]
    # Nobody, then one, then three of four do as well; oneself counts.
    assert [p_value_random(tried(1, share, 10), random, 1) for share in (0.05, 0.1, 0.2)] == [1 / 5, 2 / 5, 4 / 5]
    assert [p_value_random(tried(1, share, 10), random, 3) for share in (0.05, 0.1)] == [pytest.approx(3 / 5), 1.0]
    assert p_value_random(tried(1, None, 10), random, 1) is None
    assert p_value_random(tried(1, 0.0, 10), [tried(1, None, 10)], 1) is None
