"""Sampling against transformers' own generate, plain forwards and the distribution that it should follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small_models import CONFIGS, random_policy, tiny_policy

from rewardlm.config import GenerationSettings
from rewardlm.errors import ModelError
from rewardlm.models import generate as module
from rewardlm.models.budget import Budget
from rewardlm.models.generate import Request, Sampled, generate, groups, stream_seed
from rewardlm.models.load import Policy
from rewardlm.types import Message

GREEDY = GenerationSettings(temperature=0)
QUESTIONS = [
    "Hi",
    "Why do people say that they should all go back to where they came from?",
    "Hi",
    "Tell me a story about a small town, its river, and the two families who could not agree on the bridge.",
    "Who?",
]


@pytest.fixture(scope="module")
def tiny() -> Policy:
    return tiny_policy()


def requests_of(policy: Policy, questions: Sequence[str] = QUESTIONS, seed: int = 0) -> list[Request]:
    return [
        Request(tuple(policy.chat.encode_prompt([Message("user", text)])), stream_seed(seed, row))
        for row, text in enumerate(questions)
    ]


def answers(
    policy: Policy, requests: Sequence[Request], n: int, sampling: GenerationSettings, **more: Any
) -> list[Sampled]:
    drawn = list(generate(policy, requests, max_new_tokens=n, sampling=sampling, **more))
    assert sorted(answer.index for answer in drawn) == list(range(len(requests)))
    return sorted(drawn, key=lambda answer: answer.index)


def theirs(policy: Policy, prompt: tuple[int, ...], n: int, **settings: Any) -> list[int]:
    """transformers' own generate on one prompt alone: no padding, no batch."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = policy.causal_lm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=False,
            eos_token_id=sorted(policy.end_ids),
            pad_token_id=0,
            **settings,
        )
    return [int(token) for token in out[0, len(prompt) :]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", *CONFIGS])
def test_greedy_equals_transformers_generate_on_a_mixed_batch(name: str) -> None:
    policy = random_policy(name)
    requests = requests_of(policy)
    got = answers(policy, requests, 12, GREEDY)
    assert [answer.tokens for answer in got] == [theirs(policy, request.prompt, 12) for request in requests]


@pytest.mark.parametrize("name", ["tiny", *CONFIGS])
def test_stored_numbers_equal_a_plain_forward(name: str) -> None:
    policy = random_policy(name)
    requests = requests_of(policy)
    for answer in answers(policy, requests, 8, GenerationSettings(), keep_hidden=True):
        prompt = requests[answer.index].prompt
        with torch.inference_mode():
            out = policy.causal_lm(input_ids=torch.tensor([[*prompt, *answer.tokens]]))
            states = policy.causal_lm.base_model(input_ids=torch.tensor([[*prompt, *answer.tokens]]))[0][0]
        plain = out.logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        wanted = plain.gather(-1, torch.tensor(answer.tokens)[:, None]).squeeze(-1)
        torch.testing.assert_close(answer.logprobs, wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(answer.entropy, -(plain.exp() * plain).sum(-1), atol=1e-4, rtol=0)
        torch.testing.assert_close(answer.hidden, states[len(prompt) - 1 : -1], atol=1e-4, rtol=1e-4)


def test_greedy_stops_at_the_end_token_and_says_so(tiny: Policy) -> None:
    """The end token is made the likeliest after some tokens, by making another likely token an end token."""
    requests = requests_of(tiny)
    free = answers(tiny, requests, 12, GREEDY)
    ending = free[1].tokens[4]
    tiny.causal_lm.generation_config.eos_token_id = [tiny.tokenizer.eos_token_id, ending]
    try:
        got = answers(tiny, requests, 12, GREEDY)
        assert ending in tiny.end_ids
        assert [answer.tokens for answer in got] == [theirs(tiny, request.prompt, 12) for request in requests]
    finally:
        tiny.causal_lm.generation_config.eos_token_id = tiny.tokenizer.eos_token_id
    assert {answer.finish for answer in got} >= {"stop"}
    for answer, whole in zip(got, free, strict=True):
        cut = whole.tokens.index(ending) + 1 if ending in whole.tokens else 12
        assert answer.tokens == whole.tokens[:cut]
        assert answer.finish == ("stop" if ending in whole.tokens else "length")
        assert len(answer.logprobs) == len(answer.entropy) == cut


@pytest.mark.parametrize(
    "sampling",
    [
        GenerationSettings(),
        GenerationSettings(temperature=0.7, top_p=0.9, top_k=20),
        GenerationSettings(no_repeat_ngram_size=2),
        GenerationSettings(min_new_tokens=5),
    ],
    ids=["plain", "truncated", "no-repeat", "min-new"],
)
def test_answers_do_not_depend_on_the_batch(tiny: Policy, sampling: GenerationSettings) -> None:
    requests = requests_of(tiny, QUESTIONS * 3)
    wanted = [answer.tokens for answer in answers(tiny, requests, 10, sampling, batch_tokens=1)]
    for batch_tokens in (200, 1000, 100_000):
        got = [answer.tokens for answer in answers(tiny, requests, 10, sampling, batch_tokens=batch_tokens)]
        assert got == wanted
    backwards = answers(tiny, requests[::-1], 10, sampling)
    assert [answer.tokens for answer in backwards[::-1]] == wanted


def test_samples_of_one_prompt_differ_and_seeds_repeat_them(tiny: Policy) -> None:
    prompt = requests_of(tiny)[0].prompt
    requests = [Request(prompt, stream_seed("x", sample)) for sample in range(8)]
    first = [answer.tokens for answer in answers(tiny, requests, 10, GenerationSettings())]
    assert len({tuple(tokens) for tokens in first}) == 8
    assert [answer.tokens for answer in answers(tiny, requests, 10, GenerationSettings())] == first


def narrow(policy: Policy, logits: Sequence[float]) -> Policy:
    """``policy`` with a head that gives the same few logits after every prompt."""
    head = torch.nn.Linear(64, len(logits))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(logits))
    policy.causal_lm.set_output_embeddings(head)
    return policy


@pytest.mark.parametrize(
    "sampling",
    [
        GenerationSettings(),
        GenerationSettings(temperature=2.0),
        GenerationSettings(top_k=3),
        GenerationSettings(top_p=0.7),
        GenerationSettings(temperature=0.5, top_k=4, top_p=0.9),
    ],
    ids=["plain", "hot", "top-k", "top-p", "all"],
)
def test_tokens_follow_the_distribution(sampling: GenerationSettings) -> None:
    logits = np.array([1.0, 0.2, -1.0, 0.5, -0.3, 2.0])
    policy = narrow(tiny_policy(), logits.tolist())
    prompt = requests_of(policy)[0].prompt
    n = 4000
    requests = [Request(prompt, stream_seed("chi", sample)) for sample in range(n)]
    drawn = Counter(a.tokens[0] for a in answers(policy, requests, 1, sampling, batch_tokens=10**6))

    # The reference: temperature, then the k likeliest, then the smallest set that reaches top_p.
    p = np.exp(logits / sampling.temperature)
    order = np.argsort(-p)
    keep = order[: sampling.top_k or len(p)]
    mass = p[keep] / p[keep].sum()
    before = np.concatenate([[0.0], np.cumsum(mass)[:-1]])
    keep = keep[before < sampling.top_p] if sampling.top_p < 1 else keep
    expected = np.zeros(len(p))
    expected[keep] = p[keep] / p[keep].sum()

    assert set(drawn) <= set(keep.tolist())
    assert stats.chisquare([drawn[k] for k in keep], expected[keep] * n).pvalue > 1e-3


def test_consecutive_tokens_are_independent() -> None:
    """One stream a row: the second token must not repeat the first one's draw."""
    policy = narrow(tiny_policy(), [0.0, 0.0])
    policy.causal_lm.generation_config.eos_token_id = None
    policy.tokenizer.eos_token = "<|endoftext|>"
    prompt = requests_of(policy)[0].prompt
    requests = [Request(prompt, stream_seed("pair", sample)) for sample in range(2000)]
    got = [a.tokens for a in answers(policy, requests, 2, GenerationSettings(min_new_tokens=0), batch_tokens=10**6)]
    pairs = Counter(tuple(tokens) for tokens in got if len(tokens) == 2 and tokens[0] == 1)
    assert stats.chisquare([pairs[1, 0], pairs[1, 1]]).pvalue > 1e-3


def test_kept_logprobs_are_the_models_own_whatever_the_sampling(tiny: Policy) -> None:
    requests = requests_of(tiny)
    for answer in answers(tiny, requests, 6, GenerationSettings(temperature=0.3, top_k=5, no_repeat_ngram_size=2)):
        prompt = requests[answer.index].prompt
        with torch.inference_mode():
            logits = tiny.causal_lm(input_ids=torch.tensor([[*prompt, *answer.tokens]])).logits[0]
        plain = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer.tokens)[:, None])
        torch.testing.assert_close(answer.logprobs, plain.squeeze(-1), atol=1e-4, rtol=0)


def test_min_new_tokens_holds_the_end_back() -> None:
    policy = tiny_policy()
    end = policy.tokenizer.eos_token_id
    logits = [-20.0] * 2048
    logits[end], logits[100], logits[101] = 20.0, 0.0, -0.1
    policy = narrow(policy, logits)
    requests = requests_of(policy)
    for sampling in (GREEDY, GenerationSettings()):
        assert all(a.tokens == [end] and a.finish == "stop" for a in answers(policy, requests, 8, sampling))
        held = sampling.model_copy(update={"min_new_tokens": 3})
        for answer in answers(policy, requests, 8, held):
            assert len(answer.tokens) == 4
            assert answer.tokens.index(end) == 3


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice_not_even_from_the_prompt(size: int) -> None:
    policy = narrow(tiny_policy(), [0.0, 0.0, -1e4] + [0.0] * 40)  # token 2 is the end
    requests = [Request(tuple(prompt), 5) for prompt in ([1, 0, 0, 1], [3, 4, 3, 4, 5, 0], [0, 7], [9])]
    for answer in answers(policy, requests, 20, GREEDY.model_copy(update={"no_repeat_ngram_size": size})):
        whole = [*requests[answer.index].prompt, *answer.tokens]
        start = len(whole) - len(answer.tokens)
        grams = [tuple(whole[i : i + size]) for i in range(len(whole) - size + 1)]
        fresh = grams[max(0, start - size + 1) :]
        assert all(grams.count(gram) == 1 for gram in fresh)
        alone = answers(policy, [requests[answer.index]], 20, GREEDY.model_copy(update={"no_repeat_ngram_size": size}))
        assert alone[0].tokens == answer.tokens, "padding must ban nothing"


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_are_an_error_greedy_too(temperature: float, bad: float) -> None:
    policy = narrow(tiny_policy(), [0.0, bad, 0.0])
    with pytest.raises(ModelError, match="NaN or infinity at new token 1"):
        answers(policy, requests_of(policy), 3, GenerationSettings(temperature=temperature))


def test_a_weight_that_is_nan_is_an_error() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.causal_lm.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        answers(policy, requests_of(policy), 3, GREEDY)


def test_a_prompt_without_room_or_tokens_is_refused(tiny: Policy) -> None:
    with pytest.raises(ModelError, match="1024 positions"):
        answers(tiny, [Request(tuple([5] * 1020), 0)], 5, GREEDY)
    assert len(answers(tiny, [Request(tuple([5] * 1019), 0)], 5, GREEDY)[0].tokens) <= 5
    with pytest.raises(ModelError, match="no tokens"):
        answers(tiny, [Request((), 0)], 5, GREEDY)


def test_a_model_with_another_cache_is_sampled_by_transformers_with_the_same_numbers() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    policy = tiny_policy()
    config = MambaConfig(vocab_size=2048, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        policy.model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for parameter in policy.model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    requests = requests_of(policy)
    with pytest.warns(UserWarning, match="MambaForCausalLM.*slower"):
        got = answers(policy, requests, 6, GREEDY)
    assert [answer.tokens for answer in got] == [theirs(policy, request.prompt, 6) for request in requests]
    with pytest.warns(UserWarning, match="slower"):
        drawn = answers(policy, requests, 6, GenerationSettings(), keep_hidden=True)
    with pytest.warns(UserWarning, match="slower"):
        apart = answers(policy, requests, 6, GenerationSettings(), batch_tokens=1)
    assert [answer.tokens for answer in drawn] == [answer.tokens for answer in apart]
    assert [answer.tokens for answer in drawn] != [answer.tokens for answer in got]
    for answer in drawn:
        prompt = requests[answer.index].prompt
        with torch.inference_mode():
            logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *answer.tokens]])).logits[0]
            head = policy.causal_lm.lm_head(answer.hidden)
        plain = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        wanted = plain.gather(-1, torch.tensor(answer.tokens)[:, None]).squeeze(-1)
        torch.testing.assert_close(answer.logprobs, wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(head, logits[len(prompt) - 1 : -1], atol=1e-4, rtol=1e-4)
    assert not policy.causal_lm.lm_head._forward_pre_hooks


@pytest.mark.slow
def test_answers_of_any_length_make_room_for_those_that_wait(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many ends, few slots, room for a few steps at a time, and looks that come late: all as one row at a time."""
    requests = requests_of(tiny, QUESTIONS * 6)
    alone = answers(tiny, requests, 40, GenerationSettings(), batch_tokens=1)
    common = [token for token, n in Counter(t for a in alone for t in a.tokens).most_common(30) if n]
    tiny.causal_lm.generation_config.eos_token_id = [tiny.tokenizer.eos_token_id, *common]
    try:
        wanted = answers(tiny, requests, 40, GenerationSettings(), batch_tokens=1)
        lengths = {len(answer.tokens) for answer in wanted}
        assert len(lengths) > 5
        monkeypatch.setattr("rewardlm.fastpath.slots._ROOM", 5)
        for look in (1, 3, 50):
            monkeypatch.setitem(module._LOOK, "cpu", look)
            for batch_tokens in (250, 900, 10**6):
                got = answers(tiny, requests, 40, GenerationSettings(), batch_tokens=batch_tokens, keep_hidden=True)
                assert [a.tokens for a in got] == [a.tokens for a in wanted]
                assert [a.finish for a in got] == [a.finish for a in wanted]
                for ours, theirs_ in zip(got, wanted, strict=True):
                    torch.testing.assert_close(ours.logprobs, theirs_.logprobs, atol=1e-4, rtol=0)
                    assert ours.hidden is not None
                    assert len(ours.hidden) == len(ours.tokens)
    finally:
        tiny.causal_lm.generation_config.eos_token_id = tiny.tokenizer.eos_token_id


def test_a_batch_of_one_and_none(tiny: Policy) -> None:
    assert answers(tiny, [], 5, GREEDY) == []
    assert len(answers(tiny, requests_of(tiny)[:1], 1, GREEDY)) == 1


def test_groups_hold_every_request_once_and_their_slots_stay_within_the_budget() -> None:
    generator = np.random.default_rng(0)
    requests = [Request((9, 9, *map(int, generator.integers(0, 9, n))), 0) for n in generator.integers(1, 90, 200)]
    got = groups(requests, 10, 400)
    assert sorted(index for group in got for index in group.indices) == list(range(200))
    for group in got:
        assert group.shared == 2
        width = max(len(requests[index].prompt) for index in group.indices) - 2 + 10
        assert group.slots == 1 or group.slots * width <= 400
        assert (group.slots + 1) * width > 400
    lengths = [len(requests[index].prompt) for group in got for index in group.indices]
    assert lengths == sorted(lengths, reverse=True)


def test_plain_format_stops_where_the_user_would_speak() -> None:
    policy = tiny_policy(chat={"template": "plain"})
    stop = policy.tokenizer("\nUser:", add_special_tokens=False)["input_ids"]
    head = torch.nn.Linear(64, 2048)
    # A head that writes the stop string token by token whatever the state: its bias is switched by a counter.
    calls = iter([*stop, *[50] * 20])

    class Script(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(hidden), 2048)
            logits[:, next(calls)] = 50.0
            return logits

    policy.causal_lm.set_output_embeddings(head)
    policy.causal_lm.lm_head = Script()
    got = answers(policy, requests_of(policy)[:1], 12, GREEDY)
    assert got[0].tokens == stop
    assert got[0].finish == "stop"
    assert policy.chat.decode(got[0].tokens) == ""


def test_stream_seeds_are_the_same_on_every_machine_and_depend_on_every_part() -> None:
    import hashlib

    wanted = int.from_bytes(hashlib.sha256(b"measure\x1f0\x1fp1\x1f2").digest()[:8], "big") >> 1
    assert stream_seed("measure", 0, "p1", 2) == wanted
    assert len({stream_seed("a", i, j) for i in range(50) for j in range(50)}) == 2500
    assert stream_seed("\ud800") >= 0


@pytest.mark.parametrize("standard", [True, False])
def test_memory_that_runs_out_leaves_the_answers_as_they_were(tiny, monkeypatch, standard):
    """The allocator refuses in the middle of a group, with some of its answers given out already."""
    requests = requests_of(tiny, QUESTIONS * 3)
    if not standard:
        monkeypatch.setattr(module, "keeps_keys_and_values", lambda config: False)
        monkeypatch.setattr(module.warnings, "warn", lambda *_, **__: None)
    wanted = answers(tiny, requests, 12, GREEDY, batch_tokens=10**6)
    record, asked = module.GroupAnswers.record, []

    def limited(self, logits, hidden):
        asked.append(len(logits))
        if len(logits) > 4 and len(asked) > 3:
            torch.empty(2**58, dtype=torch.uint8)
        return record(self, logits, hidden)

    monkeypatch.setattr(module.GroupAnswers, "record", limited)
    budget = Budget(1000, "batch_tokens")
    found = answers(tiny, requests, 12, GREEDY, batch_tokens=budget)
    assert max(asked) > 4
    assert 0 < budget.size < 1000
    assert budget.shortages
    assert [answer.tokens for answer in found] == [answer.tokens for answer in wanted]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)


def test_one_row_that_does_not_fit_is_an_error_of_one_line(tiny, monkeypatch):
    def refuse(*_, **__):
        torch.empty(2**58, dtype=torch.uint8)

    monkeypatch.setattr(module, "trunk_states", refuse)
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(ModelError, match="batch_tokens"):
        list(generate(tiny, requests_of(tiny), max_new_tokens=4, sampling=GREEDY, batch_tokens=400))
