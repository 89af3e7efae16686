"""One step's update: its gradient against a plain forward pass row by row, in every form that a user may choose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from rewardlm.config import KlSettings, LoraSettings, ModelSettings, RlafSettings
from rewardlm.errors import ConfigError, TrainingError
from rewardlm.models.budget import Budget
from rewardlm.models.generate import Sampled
from rewardlm.models.load import load_policy
from rewardlm.models.logprobs import forward_rows, row_stats, score_rows
from rewardlm.models.lora import CRITIC, adapter_parameters, add_critic, add_lora, reference, using
from rewardlm.models.processes import Processes
from rewardlm.training import learner as module
from rewardlm.training.learner import (
    Batch,
    KlController,
    Learner,
    importance_weights,
    logprobs_and_values,
    make_learner,
    update,
)
from rewardlm.training.rollouts import Draft, Rollouts, length_mask
from rewardlm.training.value import ValueHead

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
LIMIT = 9  # of new tokens


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def settings(**changes) -> RlafSettings:
    return RlafSettings(**{**TINY, "batch_size": 8, "max_new_tokens": LIMIT, "steps": 2, **changes})


@dataclass
class Case:
    learner: Learner
    rollouts: Rollouts
    advantages: torch.Tensor
    returns: torch.Tensor

    @property
    def batch(self) -> Batch:
        return Batch(self.rollouts, self.advantages, self.returns)


@pytest.fixture(scope="module")
def case() -> Case:
    """Seven answers of 1 to 9 tokens to prompts of 2 to 12, under adapters and a critic that aren't zero."""
    torch.set_num_threads(1)
    policy = load_policy(ModelSettings(**TINY))
    add_lora(policy, LoraSettings(r=4), seed=0)
    add_critic(policy, LoraSettings(r=4), seed=1)
    generator = torch.Generator().manual_seed(0)
    found = Learner(policy, ValueHead(64), None, KlController(KlSettings(coef=0.7)), own_critic=True)
    parameters = [*adapter_parameters(policy.model), *found.critic_parameters()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    found.optimizer = torch.optim.SGD(parameters, lr=0.0)  # leaves the gradients where they can be read

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 1500, (length,), generator=generator).tolist()

    prompts = [(1, 7, *draw(0, 10)) for _ in range(7)]
    responses = [draw(1, LIMIT + 1) for _ in range(6)] + [[9]]
    mask = length_mask(responses)
    shape = mask.shape
    logprobs, entropy = score_rows(policy.causal_lm, prompts, responses, 10**6)
    with reference(policy):
        referred = row_stats(policy.causal_lm, prompts, responses, 10**6, keep_hidden=True)

    def noise(size: float) -> torch.Tensor:
        return size * torch.randn(shape, generator=generator)

    # Old log-probabilities and values near the new ones, so that some ratios and values are clipped and others not.
    old = logprobs + noise(0.2)
    rollouts = Rollouts(
        prompts=prompts,
        responses=responses,
        response_mask=mask,
        logprobs=torch.where(mask, old, math.nan),  # what is padding must not count, whatever it holds
        sampling_logprobs=torch.where(mask, old + noise(0.3), math.nan),
        ref_logprobs=torch.where(mask, logprobs + noise(0.2), math.nan),
        entropy=entropy,
        kl_full=None,
        ref_hidden=[row.hidden for row in referred],
        values=torch.where(mask, noise(0.3), math.nan),
        rewards=torch.zeros(7),
        group=torch.arange(7),
        texts=[""] * 7,
        judged=None,
    )
    advantages = torch.where(mask, noise(1.0), math.nan)
    returns = torch.where(mask, noise(1.0), math.nan)
    return Case(found, rollouts, advantages, returns)


@pytest.fixture(params=["trunk", "own", None])
def critic(case, request):
    """The case with a critic on the policy's states, with one that has an adapter, and with none."""
    head = case.learner.value_head
    case.learner.own_critic = request.param == "own"
    case.learner.value_head = None if request.param is None else head
    yield request.param
    case.learner.own_critic, case.learner.value_head = True, head


def gradients(case: Case, chosen: RlafSettings) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    importance = importance_weights(chosen, case.rollouts, per_answer=chosen.per_answer)
    losses = update(case.learner, chosen, replace(case.batch, importance=importance), step=0)
    return losses, {name: p.grad.clone() for name, p in named(case) if p.grad is not None}


def named(case: Case) -> list[tuple[str, torch.nn.Parameter]]:
    own = [(n, p) for n, p in case.learner.policy.model.named_parameters() if p.requires_grad]
    head = case.learner.value_head
    return own + ([] if head is None else [(f"value.{n}", p) for n, p in head.named_parameters()])


def one_batch(budget: int = 10**6, **changes) -> RlafSettings:
    # Two epochs, both of the same policy: a step's only update would take itself for the old policy.
    chosen = {"ppo_epochs": 2, "minibatches": 1, "max_grad_norm": 1e9, "value_clip_range": 0.2, **changes}
    if chosen.get("ratio") in ("answer", "sequence"):
        chosen["algorithm"] = "rloo"  # with ppo's advantages, which differ by token, it is refused
    return settings(micro_batch_tokens=budget, **chosen)


def plain_loss(case: Case, chosen: RlafSettings, rows: list[int] | None = None) -> torch.Tensor:
    """The loss from the papers' formulas: a forward pass a row, a loop over tokens, nothing shared with our code.

    Of a minibatch's ``rows``, by default all.
    """
    rollouts, causal_lm, found = case.rollouts, case.learner.policy.causal_lm, case.learner
    rows = list(range(len(rollouts.responses))) if rows is None else rows
    n_answers, n_tokens = len(rows), sum(len(rollouts.responses[row]) for row in rows)
    step_tokens = sum(map(len, rollouts.responses))
    total = torch.zeros(())
    for row in rows:
        prompt, response = rollouts.prompts[row], rollouts.responses[row]
        ids = torch.tensor([[*prompt, *response]])
        output = causal_lm(input_ids=ids, output_hidden_states=True)
        with torch.no_grad(), reference(found.policy):
            referred = causal_lm(input_ids=ids).logits[0].log_softmax(-1)
        share = {
            "bnpo": 1 / n_tokens,
            "dapo": chosen.minibatches / step_tokens,
            "grpo": 1 / n_answers / len(response),
            "dr_grpo": 1 / n_answers / LIMIT,
        }.get(chosen.loss_type or ("grpo" if chosen.ratio == "sequence" else "bnpo"))
        low, high = 1 - chosen.clip_range, 1 + (chosen.clip_range_high or chosen.clip_range)
        if chosen.ratio == "answer":
            share = 1 / n_answers
        tokens = []
        for t, token in enumerate(response):
            at = len(prompt) + t - 1
            logprobs = output.logits[0, at].log_softmax(-1)
            old, drawn = rollouts.logprobs[row, t], rollouts.sampling_logprobs[row, t]
            kl = {
                "k1": torch.zeros(()),
                "k3": (logprobs[token] - old).exp()
                * (
                    (rollouts.ref_logprobs[row, t] - logprobs[token]).exp()
                    - 1
                    - (rollouts.ref_logprobs[row, t] - logprobs[token])
                ),
                "full": divergence(logprobs, referred[at]),
            }[chosen.kl_penalty]
            tokens.append((logprobs[token] - old, old - drawn, case.advantages[row, t], kl))
            total = total - chosen.entropy_coef * entropy(logprobs) / n_tokens
            if chosen.loss == "cispo":
                ratio = min(high, math.exp(float((logprobs[token] - old).detach())))
                total = total - share * ratio * case.advantages[row, t] * logprobs[token]
            if found.value_head is not None:
                total = total + critic_term(case, chosen, ids, at, row, t) / n_tokens
        corrected = chosen.generation.temperature != 1
        if chosen.ratio == "answer":
            ratio = sum(change for change, *_ in tokens).exp()
            weight = min(2.0, math.exp(sum(float(gap) for _, gap, *_ in tokens))) if corrected else 1.0
            advantage = tokens[0][2]
            total = total - share * weight * torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)
            # The exact sum over the vocabulary is the same whichever token was drawn.
            total = total + share * (1.0 if chosen.kl_penalty == "full" else weight) * 0.7 * sum(
                kl for *_, kl in tokens
            )
            continue
        if chosen.ratio == "sequence":
            # Of the answer's share, which is 1 / B where tokens count 1 / (B·|o|).
            ratio = (sum(change for change, *_ in tokens) / len(tokens)).exp()
            weight = min(2.0, math.exp(sum(float(gap) for _, gap, *_ in tokens))) if corrected else 1.0
            clipped = torch.min(ratio * tokens[0][2], ratio.clamp(low, high) * tokens[0][2])
            total = total - share * len(tokens) * weight * clipped
            total = total + share * weight * 0.7 * sum(kl for *_, kl in tokens)
            continue
        for change, gap, advantage, kl in tokens:
            ratio, weight = change.exp(), min(2.0, math.exp(float(gap))) if corrected else 1.0
            if chosen.loss == "ppo":
                total = total - share * weight * torch.min(ratio * advantage, ratio.clamp(low, high) * advantage)
            weight = 1.0 if chosen.kl_penalty == "full" else weight
            total = total + share * weight * 0.7 * kl
    return total


def entropy(logprobs: torch.Tensor) -> torch.Tensor:
    return -(logprobs.exp() * logprobs).sum()


def divergence(logprobs: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (logprobs.exp() * (logprobs - others)).sum()


def critic_term(case: Case, chosen: RlafSettings, ids: torch.Tensor, at: int, row: int, t: int) -> torch.Tensor:
    found = case.learner
    if found.own_critic:
        with using(found.policy, CRITIC):
            state = found.policy.causal_lm(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, at]
    else:
        with torch.no_grad():
            state = found.policy.causal_lm(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, at]
    value = found.value_head.linear(state / state.square().mean().add(1e-6).sqrt())[0]
    old, target, clip = case.rollouts.values[row, t], case.returns[row, t], chosen.value_clip_range
    clipped = value if clip is None else torch.clamp(value, old - clip, old + clip)
    return 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2)


def assert_as_plain(case: Case, chosen: RlafSettings) -> None:
    losses, found = gradients(case, chosen)
    case.learner.optimizer.zero_grad()
    wanted = plain_loss(case, chosen)
    wanted.backward()
    whole = losses["policy_loss"] + losses.get("value_loss", 0) + 0.7 * losses.get("kl_loss", 0)
    whole += chosen.entropy_coef * losses.get("entropy_loss", 0)
    assert whole == pytest.approx(wanted.item(), rel=1e-4)
    expected = {name: parameter.grad for name, parameter in named(case) if parameter.grad is not None}
    assert sum(bool(gradient.any()) for gradient in expected.values()) > 10
    assert_same(found, expected)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in expected.values()))
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name] / largest, gradient / largest, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_the_update_is_that_of_a_plain_forward_pass_row_by_row(case, critic, value_clip):
    assert_as_plain(case, one_batch(value_clip_range=value_clip))


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_tokens_count_as_the_loss_type_says(case, loss_type):
    assert_as_plain(case, one_batch(loss_type=loss_type))


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["k3", "full"])
@pytest.mark.parametrize("ratio", ["token", "answer"])
def test_the_kl_may_be_a_loss_of_its_own(case, penalty, ratio):
    assert_as_plain(case, one_batch(kl={"penalty": penalty}, ratio=ratio))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"clip_range_high": 0.05},
        {"loss": "cispo", "clip_range_high": 0.05},
        {"loss": "cispo", "loss_type": "grpo", "kl": {"penalty": "k3"}},
        {"ratio": "sequence", "clip_range": 0.1, "clip_range_high": 0.02},
        {"ratio": "sequence", "loss_type": "dapo", "kl": {"penalty": "k3"}},
        {"ratio": "sequence", "generation": {"temperature": 0.7}},
        {"entropy_coef": 0.3},
        {"entropy_coef": 0.3, "loss_type": "grpo", "kl": {"penalty": "full"}},
    ],
    ids=str,
)
def test_other_losses_are_those_of_a_plain_forward_pass_row_by_row(case, changes):
    assert_as_plain(case, one_batch(**changes))


@pytest.mark.slow
def test_a_bonus_for_entropy_is_the_same_in_microbatches_and_with_recomputed_layers(case):
    whole_losses, whole = gradients(case, one_batch(entropy_coef=0.5))
    for changes in ({"budget": 20}, {"budget": 45, "gradient_checkpointing": True}):
        losses, parts = gradients(case, one_batch(entropy_coef=0.5, **changes))
        assert losses == pytest.approx(whole_losses, rel=1e-4, abs=1e-5)
        assert_same(parts, whole)


def test_without_a_bonus_the_entropy_has_no_gradient_and_costs_no_second_pass_of_the_head(case):
    rollouts, lm = case.rollouts, case.learner.policy.causal_lm
    passes = []
    handle = lm.get_output_embeddings().register_forward_hook(lambda *_: passes.append(1))
    try:
        for wanted in (False, True):
            stats = forward_rows(lm, rollouts.prompts, rollouts.responses, range(7), entropy_gradient=wanted)
            assert stats.entropy.requires_grad == wanted
            torch.testing.assert_close(stats.entropy, rollouts.entropy[rollouts.response_mask], atol=1e-4, rtol=1e-4)
            (stats.logprobs.sum() + (stats.entropy.sum() if wanted else 0)).backward()
            # The frozen head's weights are used as they are; the bonus runs the module, and again in the backward pass.
            assert len(passes) == (2 if wanted else 0)
    finally:
        handle.remove()
        case.learner.optimizer.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["k1", "k3", "full"])
@pytest.mark.parametrize("ratio", ["token", "answer"])
def test_what_was_drawn_from_another_distribution_is_weighted_by_the_policys_own(case, ratio, penalty):
    # Both sides of the cap of 2: some gaps are over log 2, and some are not.
    rollouts = case.rollouts
    gaps = torch.where(rollouts.response_mask, rollouts.logprobs - rollouts.sampling_logprobs, 0.0)
    gaps = gaps.sum(1) if ratio == "answer" else gaps[rollouts.response_mask]
    assert 0 < int((gaps > math.log(2)).sum()) < len(gaps)
    assert_as_plain(case, one_batch(ratio=ratio, generation={"temperature": 0.7}, kl={"penalty": penalty}))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 20, 45])
@pytest.mark.parametrize(
    "changes", [{}, {"ratio": "answer", "clip_range": 0.01}, {"loss_type": "grpo", "kl": {"penalty": "full"}}]
)
def test_padding_and_microbatches_leave_loss_and_gradient_unchanged(case, critic, budget, changes):
    whole_losses, whole = gradients(case, one_batch(**changes))
    losses, parts = gradients(case, one_batch(budget, **changes))
    assert losses == pytest.approx(whole_losses, rel=1e-4, abs=1e-5)
    assert 0 < losses["clip_fraction"] < 1
    assert_same(parts, whole)


def test_the_policy_is_not_moved_by_its_critic_nor_the_critics_adapter_by_the_policy(case):
    """With advantages of nothing only the critic learns; without returns to learn from, only the policy."""
    still = torch.where(case.rollouts.response_mask, 0.0, math.nan)
    update(case.learner, one_batch(), replace(case.batch, advantages=still), step=0)
    moved = {name for name, p in named(case) if p.grad is not None and bool(p.grad.any())}
    assert moved
    assert all(name.startswith("value.") or f".{CRITIC}." in name for name in moved)
    satisfied = replace(case.batch, returns=case.rollouts.values)
    update(case.learner, one_batch(value_clip_range=None), satisfied, step=0)
    moved = {name for name, p in named(case) if f".{CRITIC}." not in name and p.grad is not None and bool(p.grad.any())}
    assert any("lora_" in name for name in moved)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_applied_and_names_the_step(case, poison):
    before = {name: parameter.detach().clone() for name, parameter in named(case)}
    case.learner.optimizer.param_groups[0]["lr"] = 1.0
    name, weight = next((n, p) for n, p in named(case) if "lora_B.default" in n)
    with torch.no_grad():
        weight[0, 0] = poison
    try:
        with pytest.raises(TrainingError, match=r"step 8: the gradient's norm is (nan|inf)"):
            update(case.learner, settings(), case.batch, step=7)
        for other, parameter in named(case):
            if other != name:
                assert torch.equal(parameter, before[other]), other
    finally:
        case.learner.optimizer.param_groups[0]["lr"] = 0.0
        with torch.no_grad():
            weight.copy_(before[name])


def test_an_adapter_that_no_gradient_reaches_is_an_error(case):
    case.learner.optimizer.zero_grad(set_to_none=True)
    with pytest.raises(TrainingError, match="step 1: no gradient reaches the adapter"):
        module._apply(case.learner, 1.0, 0, Processes(cpu=True))


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_several_minibatches_each_have_the_gradient_of_their_rows(case, monkeypatch, loss_type):
    """In ``dapo`` a token counts the same in each of a step's minibatches, in ``bnpo`` more in one of short answers."""
    seen = []
    apply = module._apply

    def noted(*arguments):
        seen.append({name: p.grad.clone() for name, p in named(case) if p.grad is not None})
        return apply(*arguments)

    monkeypatch.setattr(module, "_apply", noted)
    chosen = one_batch(loss_type=loss_type, minibatches=3, ppo_epochs=1)
    losses = update(case.learner, chosen, case.batch, step=0)
    minibatches = module.minibatches(chosen, 0, 0, 7)
    assert sorted(row for rows in minibatches for row in rows) == list(range(7))
    assert sorted(map(len, minibatches)) == [2, 2, 3]
    lengths = [sum(len(case.rollouts.responses[row]) for row in rows) for rows in minibatches]
    assert len(set(lengths)) == 3
    whole = 0.0
    for rows, found in zip(minibatches, seen, strict=True):
        case.learner.optimizer.zero_grad()
        wanted = plain_loss(case, chosen, rows)
        wanted.backward()
        whole += wanted.item() / 3
        assert_same(found, {name: p.grad for name, p in named(case) if p.grad is not None})
    assert losses["policy_loss"] + losses["value_loss"] == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("ratio", ["token", "answer"])
def test_a_steps_only_update_is_its_own_old_policy(case, ratio):
    """Whatever another pass said of the answers, every ratio is 1: nothing is clipped, the gradient is REINFORCE's."""
    losses, found = gradients(case, one_batch(20, ppo_epochs=1, ratio=ratio))
    assert losses["first_ratio"] == losses["ratio"] == 1
    assert losses["clip_fraction"] == 0
    rollouts, total = case.rollouts, torch.zeros(())
    n_tokens = sum(map(len, rollouts.responses))
    case.learner.optimizer.zero_grad()
    for row, (prompt, response) in enumerate(zip(rollouts.prompts, rollouts.responses, strict=True)):
        logits = case.learner.policy.causal_lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        for t, token in enumerate(response):
            logprob = logits[len(prompt) + t - 1].log_softmax(-1)[token]
            advantage = case.advantages[row, 0 if ratio == "answer" else t]
            total = total - advantage * logprob / (7 if ratio == "answer" else n_tokens)
    total.backward()
    policy = {name: p.grad for name, p in named(case) if "lora_" in name and f".{CRITIC}." not in name}
    assert_same({name: found[name] for name in policy}, policy)


def test_the_critics_adapter_learns_at_the_critics_rate():
    policy = load_policy(ModelSettings(**TINY))
    made = make_learner(policy, settings(critic="own", learning_rate=1e-4, value_learning_rate=1e-2))
    rates = {id(p): group["lr"] for group in made.optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(adapter_parameters(policy.model)) + len(made.critic_parameters())
    assert {rates[id(p)] for p in made.critic_parameters()} == {1e-2}
    assert {rates[id(p)] for p in adapter_parameters(policy.model)} == {1e-4}


@pytest.mark.parametrize(("end", "warm_up"), [(0.0, 0), (0.0, 5), (0.1, 3)])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_schedule_falls_as_transformers_does_and_rises_in_equal_parts(kind, end, warm_up):
    chosen = settings(steps=20, schedule={"kind": kind, "warmup_steps": warm_up, "end": end})
    rates = [chosen.rate_at(step) for step in range(20)]
    assert rates[:warm_up] == pytest.approx([(step + 1) / (warm_up + 1) for step in range(warm_up)])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    build = get_cosine_schedule_with_warmup if kind == "cosine" else get_linear_schedule_with_warmup
    theirs = build(optimizer, warm_up, 20).lr_lambdas[0]
    for step in range(warm_up, 20):
        assert rates[step] == pytest.approx(end + (1 - end) * theirs(step))
    assert rates[warm_up] == 1


def test_a_schedule_of_its_own_length_keeps_its_last_rate():
    chosen = settings(steps=30, schedule={"kind": "linear", "steps": 10, "end": 0.2})
    assert [chosen.rate_at(step) for step in (0, 5, 10, 29)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert {settings(steps=30).rate_at(step) for step in range(30)} == {1.0}


def test_policy_and_critic_follow_the_schedule(case):
    made = make_learner(load_policy(ModelSettings(**TINY)), settings(critic="own", learning_rate=1e-4))
    chosen = settings(steps=10, schedule={"kind": "linear"})
    for step in (4, 5):  # from the peak each time, and not from the last rate
        made.follow(chosen, step)
        assert [group["lr"] for group in made.optimizer.param_groups] == pytest.approx(
            [(1 - step / 10) * peak for peak in (1e-4, 1e-3, 1e-3)]
        )
    assert made.learning_rate == pytest.approx(0.5e-4)


# Log-probabilities and values before the update ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trunk", "own"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_and_values_are_those_of_plain_forward_passes(kind, dtype):
    chosen = settings(critic=kind, kl={"penalty": "full"}, dtype=dtype)
    policy = load_policy(ModelSettings(**{**TINY, "dtype": dtype}))
    found = make_learner(policy, chosen)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in [*adapter_parameters(policy.model), *found.critic_parameters()]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    prompts, responses = [(1, 7, 30), (1, 7, 9, 22, 45)], [[11, 12, 13, 14], [15]]
    model = policy.causal_lm
    drawn = row_stats(model, prompts, responses, 10**6, keep_hidden=True)
    sampled = [
        Sampled(i, responses[i], row.logprobs, row.logprobs, row.entropy, row.hidden.float(), "length")
        for i, row in enumerate(drawn)
    ]
    answers = logprobs_and_values(found, chosen, Draft([0, 1], prompts, sampled, ["a", "b"]))
    tight = 1e-4 if dtype == "float32" else 0.15
    for answer, prompt, response in zip(answers, prompts, responses, strict=True):
        ids, at = torch.tensor([[*prompt, *response]]), slice(len(prompt) - 1, -1)
        with torch.no_grad():
            own = model(input_ids=ids).logits[0, at].float().log_softmax(-1)
            with reference(policy):
                ref = model(input_ids=ids).logits[0, at].float().log_softmax(-1)
            with using(policy, CRITIC if kind == "own" else "default"):
                states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, at].float()
        wanted = own[range(len(response)), response]
        torch.testing.assert_close(answer.logprobs, wanted, atol=tight, rtol=0)
        torch.testing.assert_close(answer.ref_logprobs, ref[range(len(response)), response], atol=tight, rtol=0)
        torch.testing.assert_close(answer.kl_full, (own.exp() * (own - ref)).sum(-1), atol=tight, rtol=0.05)
        scaled = states / states.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        value = scaled @ found.value_head.linear.weight[0] + found.value_head.linear.bias
        torch.testing.assert_close(answer.values, value.detach(), atol=10 * tight, rtol=0)
        assert answer.ref_hidden.shape == (len(response), 64)
    assert float(answers[0].kl_full.abs().max()) > 1e-3


@pytest.mark.parametrize("recomputes", [False, True])
def test_where_the_model_rounds_the_first_ratio_is_one_also_with_recomputed_layers(recomputes, monkeypatch):
    """Rows that share a prompt are run as one piece; recomputed, each is run whole, and rounded otherwise."""
    chosen = settings(
        algorithm="grpo", samples=2, dtype="bfloat16", gradient_checkpointing=recomputes, minibatches=1, ppo_epochs=2
    )
    policy = load_policy(ModelSettings(**{**TINY, "dtype": "bfloat16"}))
    found = make_learner(policy, chosen)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_parameters(policy.model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    prompts = [tuple(range(3, 40)), tuple(range(3, 40)), tuple(range(5, 60)), tuple(range(5, 60))]
    responses = [list(range(60 + 7 * row, 75 + 9 * row)) for row in range(4)]
    drawn = row_stats(policy.causal_lm, prompts, responses, 10**6, keep_hidden=True)
    sampled = [
        Sampled(row, responses[row], stats.logprobs, stats.logprobs, stats.entropy, stats.hidden, "length")
        for row, stats in enumerate(drawn)
    ]
    answers = logprobs_and_values(found, chosen, Draft([0, 0, 1, 1], prompts, sampled, ["a"] * 4), groups=[range(4)])
    seen = []
    plain = module.policy_loss

    def spied(logprobs, old, *rest, **named):
        seen.append(float((logprobs.detach() - old).abs().max()))
        return plain(logprobs, old, *rest, **named)

    monkeypatch.setattr(module, "policy_loss", spied)
    mask = length_mask(responses)
    old = torch.zeros(mask.shape)
    old[mask] = torch.cat([answer.logprobs for answer in answers])
    rollouts = Rollouts(
        prompts=prompts,
        responses=responses,
        response_mask=mask,
        logprobs=old,
        sampling_logprobs=old,
        ref_logprobs=old,
        entropy=old,
        kl_full=None,
        ref_hidden=None,
        values=None,
        rewards=torch.zeros(4),
        group=torch.tensor([0, 0, 1, 1]),
        texts=[""] * 4,
        judged=None,
    )
    update(found, chosen, Batch(rollouts, torch.ones(mask.shape), None), step=0)
    assert seen[0] == 0


def test_a_kl_over_the_vocabulary_needs_one_head_for_both():
    chosen = settings(kl={"penalty": "full"}, lora={"targets": ["q_proj", "lm_head"]})
    with pytest.raises(ConfigError, match=r"adapter is on the head too: take the head out of lora\.targets"):
        make_learner(load_policy(ModelSettings(**TINY)), chosen)


def test_kl_controller_by_hand():
    controller = KlController(KlSettings(coef=0.1, target=6.0, horizon=100))
    controller.update(9.0, 10)  # error 0.5, clipped to 0.2: 0.1 · (1 + 0.2 · 10 / 100)
    assert controller.coef == pytest.approx(0.102)
    controller.update(5.4, 10)  # error -0.1
    assert controller.coef == pytest.approx(0.102 * 0.99)
    controller.update(-3.0, 50)  # error -1.5, clipped to -0.2
    assert controller.coef == pytest.approx(0.102 * 0.99 * 0.9)
    fixed = KlController(KlSettings(coef=0.1))
    fixed.update(1000.0, 10)
    assert fixed.coef == 0.1


@pytest.mark.parametrize("changes", [{}, {"kl": {"penalty": "full"}}])
def test_recomputed_layers_give_the_same_gradient(case, critic, changes):
    kept_losses, kept = gradients(case, one_batch(45, **changes))
    losses, recomputed = gradients(case, one_batch(45, gradient_checkpointing=True, **changes))
    assert losses == pytest.approx(kept_losses, rel=1e-4, abs=1e-5)
    assert_same(recomputed, kept)
    # What the forward pass puts in the layers' place is gone again.
    assert not [m for m in case.learner.policy.model.modules() if "forward" in vars(m)]


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_layers_keep_only_what_goes_in(case, recompute):
    """Bytes that the forward pass saves for the backward pass: with recomputation a fraction."""
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rollouts, policy = case.rollouts, case.learner.policy
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stats = forward_rows(policy.causal_lm, rollouts.prompts, rollouts.responses, range(7), recompute=recompute)
    held = sum(size for where, size in saved.items() if where not in weights)
    widest = max(len(p) + len(r) for p, r in zip(rollouts.prompts, rollouts.responses, strict=True))
    per_layer = held / (7 * widest * 64 * 4) / 2
    assert stats.logprobs.requires_grad
    # What goes in, and the ends; queries, keys, values, gate and up besides are more than another four.
    assert per_layer < 2 if recompute else per_layer > 5


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_that_runs_out_leaves_loss_and_gradient_unchanged(case, critic, where, monkeypatch):
    """The allocator refuses, in the second microbatch or in the middle of its backward pass, with gradients there."""
    whole_losses, whole = gradients(case, one_batch())
    forward, passes = module.forward_rows, []

    class Refuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden):
            return hidden.clone()

        @staticmethod
        def backward(ctx, gradient):
            torch.empty(2**58, dtype=torch.uint8)

    def limited(causal_lm, prompts, responses, rows, **more):
        # All prompts begin with the same two tokens, which are run once.
        positions = sum(len(prompts[row]) + len(responses[row]) - 2 for row in rows) + 2
        passes.append(positions)
        found = forward(causal_lm, prompts, responses, rows, **more)
        if positions > 22 and len(passes) > 1:
            if where == "forward":
                torch.empty(2**58, dtype=torch.uint8)
            found.logprobs = Refuse.apply(found.logprobs)
        return found

    monkeypatch.setattr(module, "forward_rows", limited)
    budget = Budget(44, "micro_batch_tokens")
    with pytest.warns(UserWarning, match="out of memory with micro_batch_tokens 44: going on with 22"):
        losses = update(case.learner, one_batch(), case.batch, step=0, budget=budget)
    assert max(passes[1:]) > 22 >= passes[-1]
    assert losses == pytest.approx(whole_losses, rel=1e-4, abs=1e-5)
    assert_same({name: p.grad.clone() for name, p in named(case) if p.grad is not None}, whole)
    assert budget.size == 22
