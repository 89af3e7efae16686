"""Drift against plain forward passes, scipy, and cases that are known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapted import PROMPTS, RESPONSES, adapted_policy
from scipy.stats import entropy

from rewardlm.interpreting.drift import VocabularyDrift, drift_of_answers, first_parting, most_changed, token_drift
from rewardlm.interpreting.models import RunModel
from rewardlm.models.lora import using
from rewardlm.runs import Run


def test_known_by_hand() -> None:
    # Two models, one position, four words: an even one, and one that is sure of word 2 by half.
    even = torch.full((4,), 0.25)
    sure = torch.tensor([0.25, 0.125, 0.5, 0.125])
    drift = token_drift(torch.stack([even, sure]).log()[:, None], torch.tensor([1]))
    assert drift.entropy[:, 0].tolist() == pytest.approx([np.log(4), 1.75 * np.log(2)])
    assert drift.logprobs[:, 0].tolist() == pytest.approx([np.log(0.25), np.log(0.125)])
    assert drift.rank[:, 0].tolist() == [0, 2]
    assert int(drift.choice[1, 0]) == 2
    # KL(even ‖ sure) = 0.25·(0 + ln 2 − ln 2 + ln 2) and KL(sure ‖ even) = ln 4 − H(sure).
    assert float(drift.kl[0, 1, 0]) == pytest.approx(0.25 * np.log(2))
    assert float(drift.kl[1, 0, 0]) == pytest.approx(np.log(4) - 1.75 * np.log(2))
    assert drift.kl[0, 0, 0] == drift.kl[1, 1, 0] == 0


def test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(50), (3, 20))
    targets = rng.integers(0, 50, 20)
    drift = token_drift(torch.from_numpy(p).log(), torch.from_numpy(targets))
    assert drift.entropy.numpy() == pytest.approx(entropy(p, axis=-1))
    for a in range(3):
        for b in range(3):
            assert drift.kl[a, b].numpy() == pytest.approx(entropy(p[a], p[b], axis=-1))
    for m in range(3):
        for n in range(20):
            assert int(drift.rank[m, n]) == sum(p[m, n] > p[m, n, targets[n]])


@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_models_read_each_response_as_a_plain_forward_pass_does(name: str, tmp_path: Path) -> None:
    policy = adapted_policy(name)
    run = Run(tmp_path, {"label": "x"})
    run_models = [RunModel("PT", run, policy, None), RunModel("FT", run, policy, "default")]
    drifts, sums = drift_of_answers(run_models, PROMPTS, RESPONSES)
    assert [drift.logprobs.shape[1] for drift in drifts] == [len(response) for response in RESPONSES]
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        plain = []
        for adapter in (None, "default"):
            with using(policy, adapter), torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            plain.append(logits[len(prompt) - 1 : -1].log_softmax(-1).double())
        for m in range(2):
            for n, token in enumerate(response):
                assert float(drifts[row].logprobs[m, n]) == pytest.approx(float(plain[m][n, token]), abs=1e-3)
                assert float(drifts[row].entropy[m, n]) == pytest.approx(
                    float(entropy(plain[m][n].exp().numpy())), abs=1e-3
                )
        for n in range(len(response)):
            assert float(drifts[row].kl[0, 1, n]) == pytest.approx(
                float(entropy(plain[0][n].exp().numpy(), plain[1][n].exp().numpy())), abs=1e-3
            )
        assert sums[row].n == len(response)
        assert sums[row].logprobs[1].numpy() == pytest.approx(plain[1].sum(0).numpy(), abs=1e-2)
        assert sums[row].probabilities.sum(1).tolist() == pytest.approx([len(response)] * 2, abs=1e-3)


def test_promoted_and_demoted_tokens() -> None:
    # Two positions; word 3 is a hundred times likelier in the end, and still nobody would say it.
    before = torch.tensor([[0.5, 0.3, 0.2 - 1e-6, 1e-6], [0.7, 0.1, 0.2 - 1e-6, 1e-6]], dtype=torch.float64)
    after = torch.tensor([[0.2, 0.6, 0.2 - 1e-4, 1e-4], [0.5, 0.4, 0.1 - 1e-4, 1e-4]], dtype=torch.float64)
    both = torch.stack([before, after])
    sums = VocabularyDrift(both.log().sum(1), both.sum(1), 2)
    promoted, demoted = most_changed(sums, 0, 1, k=2)
    assert [change.token for change in promoted] == [1, 3]
    assert [change.token for change in demoted] == [0, 2]
    assert (promoted[0].probability_before, promoted[0].probability_after) == pytest.approx((0.2, 0.5))
    assert promoted[0].logprob_change == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert promoted[1].logprob_change == pytest.approx(np.log(100))
    assert most_changed(sums, 0, 0, k=3) == ([], [])


def test_where_models_part() -> None:
    kl = np.array([0.1, 0.2, 0.9, 0.0])
    assert first_parting(kl, np.array([False, True, False, True]), 0.5) == (2, 1)
    assert first_parting(kl, np.zeros(4, bool), 1.0) == (None, None)
