"""New answers under a patch: while one model answers, some of its heads and MLPs have the other model's values.

Both models read the same prompt and the same answer so far, token by token, each with a cache of its own. What the
donor computes at the new token is put into the receiver, whose logits the next token is drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from rewardlm.config import CausesSettings, GenerationSettings
from rewardlm.interpreting.answers import TOXIC_ABOVE
from rewardlm.interpreting.causes.patching import as_random
from rewardlm.interpreting.causes.sites import Patch, Site, head_outputs, patched, recording
from rewardlm.interpreting.findings import PatchedAnswers
from rewardlm.interpreting.intervals import adjust, change_between
from rewardlm.interpreting.mechanistic.interventions import text_of
from rewardlm.interpreting.mechanistic.word_contrast import ToxicityFunction
from rewardlm.measuring import metrics
from rewardlm.models.architecture import architecture_of
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import microbatches
from rewardlm.models.lora import using
from rewardlm.models.sampling import Sampler
from rewardlm.trunk import evaluating, trunk_states


@torch.no_grad()
def answers_under_patch(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    receiver: str | None,
    donor: str | None,
    sites: Sequence[Site],
    max_new_tokens: int,
    sampling: GenerationSettings,
    seeds: Sequence[int],
) -> list[list[int]]:
    """Token ids of the ``receiver``'s answers, with the ``donor``'s values at ``sites`` (heads and MLPs).

    ``receiver`` and ``donor`` are adapters by name, None the base. Row i draws by ``seeds``[i], as
    ``models.generate`` does, so without sites these are its answers.
    """
    causal_lm = policy.causal_lm
    arch = architecture_of(causal_lm)
    width = max(map(len, prompts))
    device = policy.device
    tokens = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    mask = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(list(prompt), device=device)
        mask[row, width - len(prompt) :] = 1
    uniforms = torch.from_numpy(np.stack([np.random.default_rng(seed).random(max_new_tokens) for seed in seeds]))
    uniforms = uniforms.to(device)
    ends = torch.tensor(sorted(policy.end_ids), dtype=torch.long, device=device)
    sampler = Sampler(sampling, ends, entropy=False)
    outs = {}
    for name in {receiver, donor}:
        with using(policy, name):
            outs[name] = head_outputs(arch)
    caches = {"donor": DynamicCache(config=causal_lm.config), "receiver": DynamicCache(config=causal_lm.config)}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    live = [True] * len(prompts)
    for step in range(max_new_tokens):
        with evaluating(causal_lm):
            with using(policy, donor), recording(arch) as theirs:
                if sites:
                    trunk_states(arch.body, tokens, mask, positions, caches["donor"])
                    theirs.out = outs[donor]
            with using(policy, receiver), patched(arch, Patch.of(theirs, sites), outs[receiver]):
                states = trunk_states(arch.body, tokens, mask, positions, caches["receiver"])
            logits = arch.head(states[:, -1]).float()
            so_far = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
            barred = sampler.barred(logits, [step] * len(answers), so_far)
            chosen: Tensor = sampler.draw(logits, uniforms[:, step], barred).tokens
        for row, token in enumerate(chosen.tolist()):
            if live[row]:
                answers[row].append(token)
                live[row] = token not in policy.end_ids
        if not any(live):
            break
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions[:, -1:] + 1
    return answers


def judge_patched(
    policy: Policy,
    adapter: str,
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site],
    judge: ToxicityFunction,
    settings: CausesSettings,
) -> list[PatchedAnswers]:
    """Both models' answers as they are, and with the other's values at one or more ``sites``; and the base's with those
    of an adapter of random weights, none of those that the sites were held against: is what moves the preference what
    moves the answers? p-values are corrected together.
    """
    seeds = [stream_seed(settings.seed, "patched", row) for row in range(len(prompts))]
    lengths = [len(prompt) + settings.max_new_tokens for prompt in prompts]

    def judged(receiver: str | None, donor: str | None, chosen: Sequence[Site]) -> list[float | None]:
        answers: list[list[int]] = [[] for _ in prompts]
        for rows in microbatches(lengths, settings.batch_tokens):
            found = answers_under_patch(
                policy,
                [prompts[row] for row in rows],
                receiver=receiver,
                donor=donor,
                sites=chosen,
                max_new_tokens=settings.max_new_tokens,
                sampling=settings.generation,
                seeds=[seeds[row] for row in rows],
            )
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
        return list(judge([text_of(policy, answer) for answer in answers]))

    plain = {"base": judged(None, adapter, []), "tuned": judged(adapter, None, [])}
    with as_random(policy, adapter, settings.seed + settings.random_adapters)():
        by_chance = judged(None, adapter, sites)
    rows = [
        _row("base", plain["base"]),
        _row("base", judged(None, adapter, sites), plain["base"], sites, seed=settings.seed),
        _row("base", by_chance, plain["base"], sites, seed=settings.seed, random=True),
        _row("tuned", plain["tuned"]),
        _row("tuned", judged(adapter, None, sites), plain["tuned"], sites, seed=settings.seed),
    ]
    adjust([row.change for row in rows if row.change is not None])
    return rows


def _row(
    into: Literal["base", "tuned"],
    scores: Sequence[float | None],
    plain: Sequence[float | None] | None = None,
    sites: Sequence[Site] = (),
    *,
    seed: int = 0,
    random: bool = False,
) -> PatchedAnswers:
    known = np.array(scores, np.float64)
    return PatchedAnswers(
        into=into,
        sites=[site.name for site in sites],
        random=random,
        toxicity=metrics.mean(known),
        toxic_fraction=metrics.toxic_fraction(known, threshold=TOXIC_ABOVE),
        change=None if plain is None else change_between(plain, scores, n_resamples=2000, seed=seed),
    )
