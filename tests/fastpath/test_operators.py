"""Every private operator of torch against the public way that it takes the place of, and what happens without one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import tiny_policy
from torch.nn.functional import linear, silu

from rewardlm import fastpath
from rewardlm.config import GenerationSettings
from rewardlm.fastpath import operators
from rewardlm.models.generate import Request, generate
from rewardlm.models.logprobs import body_and_head

DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape))).to(dtype)


@pytest.mark.parametrize("name", operators._TRIALS)
def test_this_torch_has_every_operator(name: str) -> None:
    """If this fails: torch has dropped or changed ``name``. Put the public way into fastpath/operators.py."""
    error = operators.missing().get(name)
    assert error is None, (
        f"torch {torch.__version__} has no {name} as we call it ({error}): the fast path is shut for everybody until "
        "fastpath/operators.py uses the public way that its docstring names"
    )


def test_silu_backward_is_autograds() -> None:
    x, gradient = random(7, 5).mul_(3).requires_grad_(), random(7, 5) - 1
    [wanted] = torch.autograd.grad(silu(x), x, gradient)
    torch.testing.assert_close(operators.silu_backward(gradient, x.detach()), wanted)


def test_softmax_backward_is_autograds() -> None:
    x, gradient = random(3, 4, 6).mul_(3).requires_grad_(), random(3, 4, 6) - 1
    weights = x.softmax(-1)
    [wanted] = torch.autograd.grad(weights, x, gradient)
    found = operators.softmax_backward(gradient, weights.detach())
    torch.testing.assert_close(found, wanted)
    # The public way that the docstring names.
    public = weights * (gradient - (gradient * weights).sum(-1, keepdim=True))
    torch.testing.assert_close(found, public.detach())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 17])
def test_a_product_of_packed_weights_is_linear(dtype: torch.dtype, biased: bool, rows: int) -> None:
    if not operators.packs(dtype):
        pytest.skip(f"oneDNN lays out no {dtype} weights on this processor")
    x, weight = random(rows, 33, dtype=dtype), random(40, 33, dtype=dtype)
    bias = random(40, dtype=dtype) if biased else None
    found = operators.packed_linear(x, operators.packed(weight), bias)
    exact = linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype == dtype
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), exact, atol=float(exact.abs().max()) * rounding, rtol=0)


def test_no_other_precision_is_packed() -> None:
    assert not operators.packs(torch.float16)
    assert not operators.packs(torch.float64)


def test_hooks_of_either_kind_are_seen() -> None:
    module = torch.nn.Identity()
    assert not operators.is_hooked(module)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert operators.is_hooked(module)
        handle.remove()
    assert not operators.is_hooked(module)


@pytest.fixture
def untried() -> Iterator[None]:
    """Whether all operators are there is asked again, now and afterwards."""
    fastpath._has_operators.cache_clear()
    yield
    fastpath._has_operators.cache_clear()


LOST = {
    "torch.ops.aten.silu_backward": (operators.torch.ops.aten, "silu_backward"),
    "torch._softmax_backward_data": (torch, "_softmax_backward_data"),
    "torch.ops.mkldnn": (operators.torch.ops.mkldnn, "_linear_pointwise"),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("how", ["gone", "changed"])
def test_without_an_operator_the_door_shuts_with_one_sentence(
    untried: None, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "torch.ops.mkldnn" and not operators.packs(torch.float32):
        pytest.skip("oneDNN is not used here")

    def lost(*_: Any) -> Any:
        error = AttributeError("no attribute of that name") if how == "gone" else TypeError("takes 7 arguments")
        raise error

    monkeypatch.setattr(*LOST[name], lost)
    with pytest.warns(UserWarning, match=f"{name} .*own forward pass, which is slower") as said:
        assert [fastpath.is_open() for _ in range(3)] == [False] * 3
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        policy = tiny_policy()
        body, _ = body_and_head(policy.causal_lm)
        assert not fastpath.runs_trees(body)
        assert not fastpath.copies_weights(body)
        [answer] = generate(policy, [Request((5, 6, 7), 0)], max_new_tokens=3, sampling=GenerationSettings())
    assert len(answer.tokens) <= 3


def test_the_operators_are_tried_on_the_cpu_whatever_the_default_device(untried: None) -> None:
    """A model's needs of memory are traced on the meta device, where oneDNN has no products."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error", UserWarning)
        assert fastpath.is_open()
