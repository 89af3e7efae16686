"""Drawing block by block against the plain inverse of the distribution function, on vocabularies of odd widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from rewardlm.config import GenerationSettings
from rewardlm.models.sampling import Distribution, Sampler


def logits_of(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(width)) * 3


@pytest.mark.parametrize("width", [1, 5, 255, 256, 257, 1000, 50257])
def test_a_draw_is_where_the_cumulative_sum_passes_it(width: int) -> None:
    logits = logits_of(40, width)
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = Distribution(logits).draw(uniforms)
    for row in range(40):
        p = np.exp(logits[row].double().numpy() - float(logits[row].max()))
        cumulative = np.cumsum(p) / p.sum()
        token = int(found[row])
        below = cumulative[token - 1] if token else 0.0
        # float32's sums may move an edge by so much.
        assert below - 1e-5 <= float(uniforms[row]) <= cumulative[token] + 1e-5


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 2**-53])
def test_what_cannot_come_is_never_drawn(uniform: float) -> None:
    logits = torch.full((3, 1000), -torch.inf)
    for row, possible in enumerate(([0], [999], [255, 256, 700])):
        logits[row, possible] = 1.0
    found = Distribution(logits).draw(torch.full((3,), uniform, dtype=torch.float64))
    assert all(float(logits[row, token]) == 1.0 for row, token in enumerate(found.tolist()))


@pytest.mark.parametrize("width", [7, 256, 3000])
def test_numbers_are_those_of_log_softmax(width: int) -> None:
    logits = logits_of(9, width) + 40
    log_p = logits.double().log_softmax(-1)
    sampler = Sampler(GenerationSettings(temperature=0.5), torch.tensor([0]))
    uniforms = torch.rand(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = sampler.draw(logits, uniforms)

    def of_drawn(distribution: torch.Tensor) -> torch.Tensor:
        return distribution.gather(-1, drawn.tokens[:, None]).squeeze(-1).float()

    torch.testing.assert_close(drawn.logprobs, of_drawn(log_p), atol=2e-5, rtol=0)
    torch.testing.assert_close(
        drawn.sampling_logprobs, of_drawn((logits.double() * 2).log_softmax(-1)), atol=4e-5, rtol=0
    )
    # A mean of numbers around 40, summed in float32.
    torch.testing.assert_close(drawn.entropy, -(log_p.exp() * log_p).sum(-1).float(), atol=2e-4, rtol=0)
    others, share = Distribution(logits).others(drawn.tokens)
    rest = log_p.exp().scatter(-1, drawn.tokens[:, None], 0)
    torch.testing.assert_close(share, rest.sum(-1, keepdim=True).float(), atol=0, rtol=1e-5)
    torch.testing.assert_close(others, (rest / rest.sum(-1, keepdim=True)).float(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_show_in_both_numbers_of_their_row_alone(bad: float) -> None:
    logits = logits_of(3, 600)
    logits[1, 300] = bad
    drawn = Sampler(GenerationSettings(), torch.tensor([0])).draw(logits, torch.full((3,), 0.4).double())
    assert torch.isfinite(drawn.logprobs).tolist() == [True, False, True]
    assert torch.isfinite(drawn.entropy).tolist() == [True, False, True]


def test_without_entropy_the_same_is_drawn_and_what_is_broken_still_shows() -> None:
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(3))
    logits[1, 600] = float("nan")
    uniforms = torch.tensor([0.1, 0.5, 0.9]).double()
    whole, less = (
        Sampler(GenerationSettings(), torch.tensor([0]), entropy=wanted).draw(logits, uniforms)
        for wanted in (True, False)
    )
    assert less.tokens.tolist() == whole.tokens.tolist()
    assert torch.isfinite(less.logprobs).tolist() == [True, False, True]
    assert less.entropy.tolist() == [0, 0, 0]


def test_the_likeliest_token_is_that_of_argmax_and_so_is_one_that_equals_it() -> None:
    logits = logits_of(200, 300)
    tokens = logits.argmax(-1)
    tokens[::2] = torch.arange(100)
    wanted = tokens == logits.argmax(-1)
    assert Distribution(logits).likeliest(tokens).tolist() == wanted.tolist()
    assert 100 <= int(wanted.sum()) < 200
    even = torch.tensor([[1.0, 3.0, 3.0]])
    assert [bool(Distribution(even).likeliest(torch.tensor([token]))) for token in range(3)] == [False, True, True]


@pytest.mark.parametrize("width", [1, 2, 300, 5000, 49152])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.05, 1.0, 60.0])
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(width: int, top_p: float, spread: float) -> None:
    """Flat distributions need more than the likeliest 4,096 of a large vocabulary, peaked ones a single token."""
    order = [torch.randperm(width, generator=torch.Generator().manual_seed(row)) for row in range(6)]
    logits = torch.stack(order).float() / width * spread  # no two are equal
    kept = Distribution(logits).nucleus(top_p).weights > 0
    for row in range(6):
        p = logits[row].double().softmax(-1).numpy()
        order = np.argsort(-p, kind="stable")
        mass = np.cumsum(p[order])
        size = int(kept[row].sum())
        # What is in is likelier than what is out.
        assert set(order[:size]) == set(np.flatnonzero(kept[row].numpy()))
        # It holds top_p, and one token fewer would not; float32 may move the edge by so much.
        assert mass[size - 1] >= top_p - 1e-5
        assert size == 1 or mass[size - 2] < top_p + 1e-5


def test_the_nucleus_is_that_of_transformers() -> None:
    logits = logits_of(200, 3000)
    ours, theirs = Distribution(logits).nucleus(0.9).weights > 0, TopPLogitsWarper(0.9)(None, logits) > -torch.inf
    assert int((ours == theirs).all(-1).sum()) >= 195  # theirs sums in float32: the last token may fall on either side
    assert int((ours != theirs).sum(-1).max()) <= 1


def test_equals_of_the_last_token_stay_in_the_nucleus() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, -9.0]])
    assert (Distribution(logits).nucleus(0.6).weights > 0).tolist() == [[True, True, True, True, False]]


def test_numbers_of_a_nucleus_are_those_of_its_tokens_alone() -> None:
    logits = logits_of(40, 3000)
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    warped = TopPLogitsWarper(0.9)(None, logits)
    found = Sampler(GenerationSettings(top_p=0.9), torch.tensor([0])).draw(logits, uniforms)
    for row, token in enumerate(found.tokens.tolist()):
        assert float(warped[row, token]) > -torch.inf
        # A token at the set's edge may be in one of the two alone, and moves their sums by its own share.
        assert float(found.sampling_logprobs[row]) == pytest.approx(float(warped[row].log_softmax(-1)[token]), abs=2e-3)
        assert float(found.logprobs[row]) == pytest.approx(float(logits[row].log_softmax(-1)[token]), abs=1e-5)


def test_broken_logits_stay_broken_in_a_nucleus_in_their_row_alone() -> None:
    logits = logits_of(3, 600)
    logits[1, 7] = float("nan")
    found = Distribution(logits).nucleus(0.9)
    assert found.normaliser.isnan().tolist() == [False, True, False]
