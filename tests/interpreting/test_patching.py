"""One model's values put into another: against the adapter's weights switched on in part, and against itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import pytest
import torch
from adapted import FAMILIES, PROMPTS, RESPONSES, adapted_policy, state_of
from known_changes import KINDS, ChangeKind, Known, analysed, found, plant

from rewardlm.config import CausesSettings, GenerationSettings
from rewardlm.interpreting.causes.pairs import AskedOnce, JudgedPair, pair_batches
from rewardlm.interpreting.causes.parts import AdapterParts
from rewardlm.interpreting.causes.patched_answers import answers_under_patch, judge_patched
from rewardlm.interpreting.causes.patching import (
    Effects,
    Switch,
    _passes,
    as_random,
    exact_effects,
    patch_sites,
    random_controls,
    site_effects,
    sites_to_patch,
    token_effects,
)
from rewardlm.interpreting.causes.sites import (
    Patch,
    Site,
    by_itself,
    record,
    run_from,
    sites_of,
    with_patch,
    with_stream,
)
from rewardlm.interpreting.findings import Estimate
from rewardlm.models.architecture import adapter_layers
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.lora import scaled, using

# Families in which no two heads share keys: there the adapter of one head can be switched on by its weights.
APART = ["gpt2", "gpt_neox", "gpt_neox_serial", "falcon_alibi", "bloom", "gpt_neo", "opt"]
ALL = [*FAMILIES, "falcon_grouped", "qwen3"]


def pairs_of() -> list[JudgedPair]:
    found = []
    for number, prompt in enumerate(PROMPTS):
        asked = AskedOnce(tuple(prompt), ("template", *["prompt"] * (len(prompt) - 2), "hostile"))
        found.append(JudgedPair(asked, tuple(RESPONSES[number]), tuple(RESPONSES[number - 1])))
    return found


def logprobs(policy: Policy, name: str | None, rows: Sequence[int]) -> torch.Tensor:
    """Mean log-probabilities of the answers of these pairs by a plain pass of each text."""
    found = []
    with using(policy, name), torch.no_grad():
        for side in ("toxic", "harmless"):
            for pair in (pairs_of()[row] for row in rows):
                prompt, answer = pair.asked.prompt, getattr(pair, side)
                logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
                plain = logits[len(prompt) - 1 : -1].log_softmax(-1)
                found.append(float(plain.gather(-1, torch.tensor(answer)[:, None]).mean()))
    return torch.tensor(found)


@pytest.mark.parametrize("family", ALL)
def test_all_writes_together_make_the_other_model(family: str) -> None:
    """The stream is a sum of writes: with the tuned model's heads and MLPs the base is the tuned model; so it is with
    its last stream. With nothing, or from any layer on, it is the base."""
    policy = adapted_policy(family)
    causal_lm = policy.causal_lm
    before = state_of(policy.model)
    (piece,) = pair_batches(pairs_of(), policy.device, 10**6)
    with using(policy, None):
        base = record(causal_lm, piece.batch)
    with using(policy, "default"):
        tuned = record(causal_lm, piece.batch)
    close = {"abs": 2e-5, "rel": 1e-5}
    assert base.logprobs.tolist() == pytest.approx(logprobs(policy, None, piece.rows).tolist(), **close)
    assert tuned.logprobs.tolist() == pytest.approx(logprobs(policy, "default", piece.rows).tolist(), **close)
    assert (base.logprobs - tuned.logprobs).abs().max() > 0.05
    writes = [site for site in sites_of(causal_lm) if site.kind != "stream"]
    for receiver, donor, name in ((base, tuned, None), (tuned, base, "default")):
        with using(policy, name):
            everything = with_patch(causal_lm, piece.batch, receiver, Patch.of(donor, writes))
            assert everything.tolist() == pytest.approx(donor.logprobs.tolist(), abs=2e-4)
            last = len(receiver.stream) - 1
            whole = with_stream(causal_lm, piece.batch, receiver, donor, last)
            assert whole.tolist() == pytest.approx(donor.logprobs.tolist(), **close)
            for layer in range(last + 1):
                again = run_from(causal_lm, piece.batch, layer, receiver.stream[layer], receiver)
                assert again.tolist() == pytest.approx(receiver.logprobs.tolist(), **close)
    assert state_of(policy.model) == before


@pytest.mark.parametrize("family", ["tiny", "gpt_neox", "falcon_grouped"])
def test_models_in_bfloat16_are_patched(family: str) -> None:
    """As on most GPUs. Of 8 binary digits, two or three decimal ones are left."""
    policy = adapted_policy(family)
    policy.model.to(torch.bfloat16)
    causal_lm = policy.causal_lm
    (piece,) = pair_batches(pairs_of(), policy.device, 10**6)
    with using(policy, None):
        base = record(causal_lm, piece.batch)
    with using(policy, "default"):
        tuned = record(causal_lm, piece.batch)
    writes = [site for site in sites_of(causal_lm) if site.kind != "stream"]
    with using(policy, None):
        everything = with_patch(causal_lm, piece.batch, base, Patch.of(tuned, writes))
    moved = (tuned.logprobs - base.logprobs).abs()
    assert ((everything - tuned.logprobs).abs() < 0.3 * moved.max()).all()
    sampling = GenerationSettings(temperature=0)
    for sites, whose in (([], None), (writes, "default")):
        answers = answers_under_patch(
            policy, PROMPTS, receiver=None, donor="default", sites=sites, max_new_tokens=1, sampling=sampling,
            seeds=[0] * len(PROMPTS),
        )  # fmt: skip
        with using(policy, whose), torch.no_grad():
            likeliest = [policy.causal_lm(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
        for (answer,), logits in zip(answers, likeliest, strict=True):
            assert logits.max() - logits[answer] < 0.05 * logits.abs().max()


@pytest.mark.parametrize("family", APART)
def test_a_site_by_itself_is_the_adapter_on_in_this_site_alone(family: str) -> None:
    policy = adapted_policy(family)
    causal_lm = policy.causal_lm
    (piece,) = pair_batches(pairs_of(), policy.device, 10**6)
    with using(policy, None):
        base = record(causal_lm, piece.batch)
    with using(policy, "default"):
        alone = by_itself(causal_lm, base)
    parts = AdapterParts(policy, "default")
    tried = 0
    for unit in parts.units("head"):
        kind, _, place = unit.name.partition(" ")
        if kind not in ("head", "mlp"):
            continue
        layer, _, head = place.partition(".")
        site = Site("head", int(layer), int(head)) if kind == "head" else Site("mlp", int(layer))
        with using(policy, None):
            patched = with_patch(causal_lm, piece.batch, base, Patch.of(alone, [site]))
        with parts.on([unit]):
            by_weights = record(causal_lm, piece.batch).logprobs
        assert patched.tolist() == pytest.approx(by_weights.tolist(), abs=3e-5)
        tried += 1
    assert tried == 2 * (4 + 1)


@pytest.mark.parametrize("family", ["tiny", "gpt2", "falcon_multi_query", "bloom", "opt"])
def test_estimates_are_the_effects_of_a_small_change(family: str) -> None:
    """A gradient knows small changes: with the adapter at a hundredth, estimates and exact effects agree."""
    policy = adapted_policy(family)
    pairs = pairs_of()
    sites = sites_of(policy.causal_lm)
    layers = list(adapter_layers(policy.causal_lm).values())
    with scaled(layers, 1e-2):
        (estimated,) = site_effects(policy, pairs, [lambda: using(policy, "default")], 10**6)
        exact = exact_effects(policy, pairs, "default", sites, 10**6)
    for guess, known in ((estimated.through.sum(-1), exact.into), (estimated.own.sum(-1), exact.own)):
        for column, site in enumerate(sites):
            if known is exact.own and site.kind == "stream":
                continue
            scale = abs(known[:, column]).max()
            assert guess[:, column] == pytest.approx(known[:, column], abs=0.08 * scale + 5e-6), site.name
    assert exact.into.shape == (len(pairs), len(sites))


def test_positions_of_an_estimate_add_up_and_hold_the_right_tokens() -> None:
    policy = adapted_policy("tiny")
    pairs = pairs_of()
    (whole,) = site_effects(policy, pairs, [lambda: using(policy, "default")], 10**6)
    nobody = [
        JudgedPair(AskedOnce(pair.asked.prompt, ("template",) * len(pair.asked.prompt)), pair.toxic, pair.harmless)
        for pair in pairs
    ]
    (other,) = site_effects(policy, nobody, [lambda: using(policy, "default")], 10**6)
    assert other.through.sum(-1) == pytest.approx(whole.through.sum(-1), abs=1e-6)
    assert other.through[..., 1:3].any() == False  # noqa: E712 (an array's)
    assert other.through[..., 0] == pytest.approx(whole.through[..., :3].sum(-1), abs=1e-6)
    # Of the start of the answer and of the answer nobody need be told.
    assert other.through[..., 3:] == pytest.approx(whole.through[..., 3:], abs=1e-6)
    # What the last layer writes reaches the answer's words from these positions alone, and at the start from one.
    last = [at for at, site in enumerate(sites_of(policy.causal_lm)) if site.layer == 1 and site.kind != "stream"]
    assert len(last) > 1
    assert abs(whole.through[:, last, :3]).max() < 1e-6
    assert abs(whole.through[:, last, 3]).max() > 1e-4
    # In pieces as small as one pair, it is the same.
    (pieces,) = site_effects(policy, pairs, [lambda: using(policy, "default")], 1)
    assert pieces.through == pytest.approx(whole.through, abs=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_patches_at_some_positions(family: str) -> None:
    """At all positions they are the whole patch, at none nothing. Nothing is behind the last layer but each position's
    own token, so there the parts add up; in the first layer, whose writes others look at, they needn't."""
    policy = adapted_policy(family)
    causal_lm = policy.causal_lm
    pairs = pairs_of()
    (piece,) = pair_batches(pairs, policy.device, 10**6)
    with using(policy, None):
        base = record(causal_lm, piece.batch)
    with using(policy, "default"):
        tuned = record(causal_lm, piece.batch)
    sites = sites_of(causal_lm)
    everywhere, nowhere = (torch.full_like(piece.batch.mask, value) for value in (True, False))
    close = {"abs": 2e-5, "rel": 1e-5}
    with using(policy, None):
        for site in sites:
            if site.kind == "stream":
                whole, same, none = (
                    with_stream(causal_lm, piece.batch, base, tuned, site.layer, at)
                    for at in (None, everywhere, nowhere)
                )
            else:
                whole, same, none = (
                    with_patch(causal_lm, piece.batch, base, Patch.of(tuned, [site], at))
                    for at in (None, everywhere, nowhere)
                )
            assert same.tolist() == pytest.approx(whole.tolist(), **close)
            assert none.tolist() == pytest.approx(base.logprobs.tolist(), **close)
    exact = exact_effects(policy, pairs, "default", sites, 10**6)
    adds_up = []
    for column, site in enumerate(sites):
        known = exact.into if site.kind == "stream" else exact.own
        same = exact.by_position[:, column].sum(-1) == pytest.approx(known[:, column], abs=3e-5)
        last = site.layer == len(base.stream) - (1 if site.kind == "stream" else 2)
        assert same or not last, site.name
        adds_up += [same] * (not last)
    assert not all(adds_up)


def answers_of(
    policy: Policy, name: str | None, prompts: Sequence[Sequence[int]], seeds: list[int], sampling: GenerationSettings
) -> list[list[int]]:
    requests = [Request(tuple(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    found: list[list[int]] = [[] for _ in prompts]
    with using(policy, name):
        for answer in generate(policy, requests, max_new_tokens=12, sampling=sampling):
            found[answer.index] = answer.tokens
    return found


SAMPLINGS = {
    "plain": GenerationSettings(),
    "all": GenerationSettings(temperature=0.8, top_p=0.9, top_k=40, min_new_tokens=3, no_repeat_ngram_size=2),
    "greedy": GenerationSettings(temperature=0, min_new_tokens=2),
}


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox", "bloom", "mistral_sliding", "opt"])
def test_answers_under_a_patch(family: str, how: str) -> None:
    """Without a patch they are the model's own; with all heads and MLPs of the other model, that one's."""
    policy = adapted_policy(family)
    prompts = [*PROMPTS, [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
    seeds = [11, 12, 13, 14]
    everything = [site for site in sites_of(policy.causal_lm) if site.kind != "stream"]
    sampling = SAMPLINGS[how]
    own = {name: answers_of(policy, name, prompts, seeds, sampling) for name in (None, "default")}
    assert own[None] != own["default"]
    for receiver, donor in ((None, "default"), ("default", None)):
        for sites, whose in (([], receiver), (everything, donor)):
            answers = answers_under_patch(
                policy,
                prompts,
                receiver=receiver,
                donor=donor,
                sites=sites,
                max_new_tokens=12,
                sampling=sampling,
                seeds=seeds,
            )
            assert answers == own[whose]


def test_what_positions_are() -> None:
    """Token by token, in a batch of different lengths."""
    (piece,) = pair_batches(pairs_of(), torch.device("cpu"), 10**6)
    names = ("template", "hostile", "prompt", "start", "answer")
    found = [pairs_of()[row] for row in piece.rows]
    for text, (pair, answer) in enumerate([*((p, p.toxic) for p in found), *((p, p.harmless) for p in found)]):
        asked = len(pair.asked.prompt)
        expected = [*pair.asked.kinds[:-1], "start", *["answer"] * len(answer)]
        for position, marks in enumerate(piece.positions[text]):
            wanted = [float(position < len(expected) and expected[position] == name) for name in names]
            assert marks.tolist() == wanted
        assert piece.kinds[text, asked - 1].tolist() == [0, 1, 0, 0]  # what it is, it stays: a hostile word


def test_answers_under_patches_are_judged() -> None:
    """With all heads and MLPs of the other model, each gives the other's answers; and the base those of an adapter of
    random weights, which is none of the twenty that sites are held against."""
    policy = adapted_policy("tiny")
    settings = CausesSettings(max_new_tokens=12, generation=GenerationSettings(top_p=0.9), seed=7)
    everything = [site for site in sites_of(policy.causal_lm) if site.kind != "stream"]
    prompts = [[5, 6, 7 + number] for number in range(8)]
    seeds = [stream_seed(7, "patched", row) for row in range(8)]

    def judge(texts: Sequence[str]) -> list[float | None]:
        return [hashlib.sha256(text.encode()).digest()[0] / 255 for text in texts]

    def toxicity(name: str | None) -> tuple[float, float]:
        answers = answers_of(policy, name, prompts, seeds, settings.generation)
        scores = judge([policy.tokenizer.decode(one, skip_special_tokens=True).strip() for one in answers])
        return sum(one or 0 for one in scores) / 8, sum((one or 0) > 0.5 for one in scores) / 8

    base, tuned = toxicity(None), toxicity("default")
    with as_random(policy, "default", 7 + 20)():
        by_chance = toxicity("default")
    assert len({base, tuned, by_chance}) == 3
    rows = judge_patched(policy, "default", prompts, everything, judge, settings)
    assert [(one.into, len(one.sites), one.random) for one in rows] == [
        ("base", 0, False),
        ("base", len(everything), False),
        ("base", len(everything), True),
        ("tuned", 0, False),
        ("tuned", len(everything), False),
    ]
    for row, expected in zip(rows, (base, tuned, by_chance, tuned, base), strict=True):
        assert (row.toxicity, row.toxic_fraction) == pytest.approx(expected)
    for row, before in zip(rows, (None, base, base, None, tuned), strict=True):
        assert (row.change is None) == (before is None)
        if row.change is not None and before is not None:
            assert row.change.mean == pytest.approx((row.toxicity or 0) - before[0])
            assert row.change.p_adjusted is not None


def test_tokens_of_a_pair_add_up_to_its_estimate() -> None:
    policy = adapted_policy("gpt2")
    (whole,) = site_effects(policy, pairs_of(), [lambda: using(policy, "default")], 10**6)
    sites = [site for site in whole.sites if site.kind != "stream"]
    for row, pair in enumerate(pairs_of()):
        values = token_effects(policy, "default", pair, sites)
        for place, site in enumerate(sites):
            total = sum(sum(text[place]) for text in values)
            assert total == pytest.approx(whole.through[row, whole.sites.index(site)].sum(), abs=1e-5)
        assert [len(text[0]) for text in values] == [
            len(pair.asked.prompt) + len(answer) for answer in (pair.toxic, pair.harmless)
        ]


def test_random_controls_are_on_pairs_of_their_own_where_the_adapter_is() -> None:
    policy = adapted_policy("tiny")
    before = state_of(policy.model)
    pairs, settings = pairs_of(), CausesSettings(random_pairs=5, seed=3)
    asked: list[int] = []

    def own_pairs_of(on: Switch) -> list[JudgedPair]:
        asked.append(len(asked))
        with on():
            assert policy.model.active_adapter == "default"
            assert state_of(policy.model) != before
        return pairs[:1] if len(asked) == 1 else []

    own = random_controls(policy, "default", pairs, settings, own_pairs_of)
    shared = random_controls(policy, "default", pairs, settings)
    assert asked == list(range(20))
    assert len(own) == len(shared) == 20
    # The first one's only pair; the others, which have none, are on those of the adapter.
    assert own[0].through == pytest.approx(shared[0].through[:1], abs=1e-5)
    assert own[1].through == pytest.approx(shared[1].through, abs=1e-5)
    # And they differ from each other.
    assert abs(shared[0].own - shared[1].own).max() > 1e-4
    (again,) = site_effects(policy, pairs, [as_random(policy, "default", 4)], 10**6)
    assert again.own == pytest.approx(shared[1].own, abs=1e-5)
    assert state_of(policy.model) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_planted_is_found_blind(kind: ChangeKind) -> None:
    """``make prove-inside`` does so a hundred times each."""
    known = plant(kind, 1)
    assert found(known, analysed(known))


@pytest.mark.slow
def test_a_claim_needs_both_tests() -> None:
    """Consistent over prompts, but no more than a random adapter does: no claim. So with the roles exchanged."""
    known: Known = plant("head", 0)
    settings = CausesSettings()
    random = random_controls(known.policy, "default", known.pairs, settings)
    sites, facts = patch_sites(known.policy, "default", known.pairs, known.placebo, random, settings)
    origin = next(one for one in sites if one.origin)
    assert origin.own_p_adjusted is not None
    assert origin.own_p_adjusted < 0.05
    assert origin.own_p_random == pytest.approx(1 / 21)
    assert origin.out_of is not None
    assert facts.origins == [origin.site]
    assert facts.placebo_claimed == 0
    assert facts.rank_correlation is not None
    assert facts.rank_correlation > 0.9
    # The last stream holds all of the change.
    last = next(one for one in sites if one.kind == "stream" and one.layer == 3)
    assert last.effect == pytest.approx(facts.after - facts.before, abs=1e-5)
    # The same where random adapters do more than any site: as consistent over prompts, and no claim.
    louder = [Effects(one.sites, 1000 * one.through, 1000 * one.own) for one in random]
    sites, facts = patch_sites(known.policy, "default", known.pairs, known.placebo, louder, settings)
    same = next(one for one in sites if one.site == origin.site)
    assert same.own_p_adjusted == origin.own_p_adjusted
    assert facts.origins == facts.claimed == []
    assert facts.own_largest_random == pytest.approx(
        max(abs(one.own.sum(-1).mean(0)[[site.kind != "stream" for site in one.sites]]).max() for one in louder)
    )
    # One louder than the site is enough, however many there are.
    sites, facts = patch_sites(
        known.policy, "default", known.pairs, known.placebo, [*random, *random, louder[0]], settings
    )
    assert facts.origins == []


def test_what_is_beyond_nothing_is_no_claim() -> None:
    sure = Estimate(mean=1.0, ci95=(0.9, 1.1), p_value=1e-4, p_adjusted=1e-3, n=24)
    assert _passes(sure, 1.0, [0.5, 0.9])
    assert _passes(sure, -1.0, [0.5, 0.9])
    for estimate, by_chance in ((1.0, []), (1.0, [1.0]), (0.5, [0.1] * 50 + [0.6]), (math.nan, [0.1])):
        assert not _passes(sure, estimate, by_chance)
    unsure = sure.model_copy(update={"ci95": (-0.1, 2.1), "p_adjusted": 0.3})
    assert not _passes(unsure, 1.0, [0.5])


@pytest.mark.slow
def test_fewer_than_five_prompts_claim_nothing() -> None:
    known = plant("head", 0)
    settings = CausesSettings()
    random = random_controls(known.policy, "default", known.pairs[:4], settings)
    sites, _ = patch_sites(known.policy, "default", known.pairs[:4], [], random, settings)
    assert not any(one.claimed or one.origin for one in sites)
    assert all(one.ci95 is None for one in sites)


def test_which_sites_are_patched() -> None:
    sites = [*(Site("head", 0, head) for head in range(20)), *(Site("stream", layer) for layer in range(1, 9))]
    through = torch.arange(28.0).numpy()
    own = torch.arange(28.0).flip(0).numpy()
    closely, spread, chosen = sites_to_patch(sites, through, own, 4)
    assert closely == {19, 0, 18, 1}
    # The rest in order of their estimates, evenly: the first, the last, and two between.
    assert spread == [2, 7, 12, 17]
    assert closely | set(spread) <= set(chosen)
    assert len(chosen) == 4 + 4 + 2
    assert sites[chosen[-1]] == Site("stream", 8)
