"""Changes of the stream against weights that are changed by hand, and against a decoding loop of the tests' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import CONFIGS, adapted, random_policy, tiny_policy
from small_steering import GREEDY, answered, assert_unchanged, changed_inputs, greedy, prompts_of, state_of

from rewardlm.errors import ModelError
from rewardlm.models.architecture import architecture_of
from rewardlm.models.load import Policy
from rewardlm.steering.activation import StreamSteering, ablates, adds, adds_where
from rewardlm.steering.steered import Unsteered
from rewardlm.stream import Edits, edited

TOKENS = torch.randint(5, 2000, (3, 12), generator=torch.Generator().manual_seed(2))
WIDTH = 64


def vector(seed: int, width: int = WIDTH, length: float = 3.0) -> torch.Tensor:
    found = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return found * length / found.norm()


def basis(seed: int, rank: int, width: int = WIDTH) -> torch.Tensor:
    found = torch.randn(width, rank, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(found).Q


def steered_logits(policy: Policy, changes: Any, strengths: list[float]) -> torch.Tensor:
    """Logits of ``TOKENS`` with the changes at all positions, a strength per row."""
    arch = architecture_of(policy.causal_lm)
    modules = {}
    for layer, kind in changes:
        found = {"in": [*arch.layers, arch.norm], "attention": arch.attention_out, "mlp": arch.mlp_out}[kind]
        modules[layer, kind] = found[layer]
    with torch.no_grad(), edited(arch.body, modules, Edits(changes, answers_only=False)) as edits:
        edits.strengths = torch.tensor(strengths)
        return policy.causal_lm(input_ids=TOKENS).logits


def test_adding_to_what_a_layer_reads_is_a_bias_of_the_layer_before() -> None:
    v = vector(1)
    strengths = [0.0, 0.5, -2.0]
    got = steered_logits(tiny_policy(), {(1, "in"): adds(v)}, strengths)
    for row, strength in enumerate(strengths):
        policy = tiny_policy()
        down = policy.causal_lm.model.layers[0].mlp.down_proj
        down.bias = torch.nn.Parameter(strength * v)
        with torch.no_grad():
            wanted = policy.causal_lm(input_ids=TOKENS[row : row + 1]).logits[0]
        torch.testing.assert_close(got[row], wanted, atol=1e-4, rtol=1e-4)


def test_ablating_at_every_write_is_orthogonalising_the_weights() -> None:
    """Arditi et al. 2024, section 4.1: W_out ← W_out − d̂·d̂ᵀ·W_out for every matrix that writes into the stream."""
    unit = vector(2, length=1.0)
    changes = {(0, "in"): ablates(unit[:, None])}
    for layer in (0, 1):
        changes |= {(layer, kind): ablates(unit[:, None]) for kind in ("attention", "mlp")}  # type: ignore[misc]
    got = steered_logits(tiny_policy(), changes, [1.0, 1.0, 0.0])
    policy = tiny_policy()
    with torch.no_grad():
        plain = policy.causal_lm(input_ids=TOKENS).logits
    model = policy.causal_lm
    model.lm_head.weight = torch.nn.Parameter(
        model.lm_head.weight.detach().clone()
    )  # The head reads; it isn't changed.
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        model.model.embed_tokens.weight = torch.nn.Parameter(embedding - embedding @ unit[:, None] * unit)
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight -= torch.outer(unit, unit @ linear.weight)
        wanted = model(input_ids=TOKENS).logits
    torch.testing.assert_close(got[:2], wanted[:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[2], plain[2], atol=1e-5, rtol=1e-5)


def test_projecting_what_an_mlp_writes_is_projecting_its_weights() -> None:
    """ProFS: W ← (I − α·P)·W of the MLP's output matrix."""
    u = basis(3, 2)
    for strength in (0.3, 1.0):
        got = steered_logits(tiny_policy(), {(1, "mlp"): ablates(u)}, [strength] * 3)
        policy = tiny_policy()
        with torch.no_grad():
            weight = policy.causal_lm.model.layers[1].mlp.down_proj.weight
            weight.copy_((torch.eye(WIDTH) - strength * u @ u.T) @ weight)
            wanted = policy.causal_lm(input_ids=TOKENS).logits
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_gate_adds_only_where_the_probe_fires() -> None:
    states = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(4))
    v, w, b = torch.arange(4.0), torch.tensor([1.0, -1.0, 0.5, 0.0]), -0.2
    strengths = torch.tensor([2.0, 0.5])[:, None, None]
    got = adds_where(v, w, b)(states, strengths)
    fired = 0
    for row in range(2):
        for position in range(5):
            x = states[row, position]
            fires = sum(float(x[i]) * float(w[i]) for i in range(4)) + b > 0
            fired += fires
            wanted = [float(x[i]) + (float(strengths[row, 0, 0]) * float(v[i]) if fires else 0.0) for i in range(4)]
            torch.testing.assert_close(got[row, position], torch.tensor(wanted))
    assert 0 < fired < 10


def by_hand(policy: Policy, layer: int, v: torch.Tensor, strength: float, prompt: list[int], n: int, where: str) -> Any:
    """Greedy answers by whole passes without a cache, with the vector added by the test's own hook."""
    arch = architecture_of(policy.causal_lm)

    def logits(tokens: list[int], start: int) -> torch.Tensor:
        def change(states: torch.Tensor) -> torch.Tensor:
            states = states.clone()
            states[:, 0 if where == "all" else start - 1 :] += strength * v
            return states

        with torch.no_grad(), changed_inputs([*arch.layers, arch.norm][layer], change):
            return policy.causal_lm(input_ids=torch.tensor([tokens])).logits[0, -1]

    return greedy(logits, prompt, n, policy.end_ids)


STRENGTHS = [1.0, 0.0, 2.0, -1.0, 0.5]


@pytest.mark.parametrize("where", ["answer", "all"])
@pytest.mark.parametrize("door", ["1", "0"])
def test_answers_are_those_of_a_plain_loop(where: str, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the fast path, several strengths in one batch, rows that wait for a slot among them."""
    monkeypatch.setenv("REWARDLM_FASTPATH", door)
    policy, v = tiny_policy(), vector(5)
    steering = StreamSteering("activation", 1.0, {(1, "in"): adds(v)}, answers_only=where == "answer")
    got = answered(policy, steering, STRENGTHS, sampling=GREEDY, batch_tokens=120)
    wanted = [
        by_hand(policy, 1, v, strength, prompt, 8, where)
        for strength, prompt in zip(STRENGTHS, prompts_of(policy), strict=True)
    ]
    assert [answer.tokens for answer in got] == wanted
    plain = [by_hand(policy, 1, v, 0.0, prompt, 8, where) for prompt in prompts_of(policy)]
    assert sum(one != other for one, other in zip(wanted, plain, strict=True)) >= 2, "nothing was steered"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("gemma", "mistral_sliding")])
def test_every_family_answers_as_a_plain_loop(name: str) -> None:
    policy = random_policy(name)
    v = vector(6, 32)
    steering = StreamSteering("activation", 1.0, {(1, "in"): adds(v)}, answers_only=True)
    got = answered(policy, steering, STRENGTHS, sampling=GREEDY)
    wanted = [
        by_hand(policy, 1, v, strength, prompt, 8, "answer")
        for strength, prompt in zip(STRENGTHS, prompts_of(policy), strict=True)
    ]
    assert [answer.tokens for answer in got] == wanted


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_the_fast_path_changes_what_sublayers_write(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    u = basis(7, 3)
    steering = StreamSteering("profs", 1.0, {(0, kind): ablates(u), (1, kind): ablates(u)}, answers_only=False)
    found = []
    for door in ("1", "0"):
        monkeypatch.setenv("REWARDLM_FASTPATH", door)
        found.append(answered(tiny_policy(), steering, STRENGTHS, sampling=GREEDY))
    assert [answer.tokens for answer in found[0]] == [answer.tokens for answer in found[1]]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)


def test_an_adapter_stays_under_the_steering() -> None:
    policy, v = adapted("tiny"), vector(8)
    steering = StreamSteering("activation", 1.0, {(1, "in"): adds(v)}, answers_only=True)
    before = state_of(policy)
    got = answered(policy, steering, STRENGTHS, sampling=GREEDY)
    wanted = [
        by_hand(policy, 1, v, strength, prompt, 8, "answer")
        for strength, prompt in zip(STRENGTHS, prompts_of(policy), strict=True)
    ]
    assert [answer.tokens for answer in got] == wanted
    assert_unchanged(policy, before)


@pytest.mark.slow
def test_a_quantised_base_is_steered() -> None:
    pytest.importorskip("bitsandbytes")
    policy, v = tiny_policy(load="4bit"), vector(8)
    steering = StreamSteering(
        "activation", 1.0, {(1, "in"): adds(v), (1, "mlp"): ablates(basis(1, 2))}, answers_only=True
    )
    before = state_of(policy)
    got = answered(policy, steering, [3.0] * 5, sampling=GREEDY)
    plain = answered(policy, Unsteered(), [0.0] * 5, sampling=GREEDY)
    assert [one.tokens for one in got] != [one.tokens for one in plain]
    assert_unchanged(policy, before)


def test_the_model_is_left_as_it_was_when_answers_break_off() -> None:
    policy = tiny_policy()
    before = state_of(policy)
    broken = StreamSteering("activation", 1.0, {(1, "in"): adds(vector(9) * torch.nan)}, answers_only=True)
    with pytest.raises(ModelError, match="NaN"):
        answered(policy, broken, [1.0] * 5)
    assert_unchanged(policy, before)
    with pytest.raises(KeyError), broken.on(policy):
        raise KeyError
    assert_unchanged(policy, before)


def test_a_layer_that_is_not_there_is_refused() -> None:
    steering = StreamSteering("activation", 1.0, {(3, "in"): adds(vector(9))}, answers_only=True)
    with (
        pytest.raises(ModelError, match="layers 0 to 1, and 2 is what its final norm reads"),
        steering.on(tiny_policy()),
    ):
        pass


def test_one_request_at_a_time_gives_what_a_batch_gives() -> None:
    policy, v = tiny_policy(), vector(10)
    steering = StreamSteering("activation", 1.0, {(1, "in"): adds(v)}, answers_only=True)
    together = answered(policy, steering, STRENGTHS)
    alone = answered(policy, steering, STRENGTHS, batch_tokens=1)
    assert [one.tokens for one in together] == [one.tokens for one in alone]
