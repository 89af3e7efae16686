"""Where an adapter works, and through which heads and MLPs: values of the tuned model put into the base, and back.

Two questions, and for each a value that the base gets at a site:

* **origin**: what the site writes if the adapter is on there alone, and everything before it is the base's. To patch
  that is to switch on the adapter of this head or MLP.
* **effect**: what it writes in the tuned model, where it also answers to all that the adapter did before. A site can
  pass on much without any adapter of its own.

**Exact patching** runs a pass a site, and of the important ones a pass for each kind of position. **Attribution
patching** (Nanda 2023; Syed, Rager & Conmy 2023) estimates all of them from one gradient: with a what the base has, a'
what it gets, and E the preference of ``pairs``,

    estimate = Σ_positions (a' − a) · ∂E/∂a      at the base

It says where to look: only what was patched exactly can be claimed. And a claim must pass two tests. Over prompts: the
interval excludes zero, with p corrected for all sites (Holm). And against adapters of random weights, each module as
large (``interventions.random_adapter``): its estimate must be beyond that of every site in all ``random_adapters``. Any
change of a model has consistent effects somewhere, so the first test alone would find something in each of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardlm.config import CausesSettings
from rewardlm.interpreting.causes.pairs import POSITION_KINDS, JudgedPair, PairBatch, pair_batches
from rewardlm.interpreting.causes.sites import (
    Patch,
    Recorded,
    Site,
    by_itself,
    record,
    sites_of,
    with_patch,
    with_stream,
)
from rewardlm.interpreting.findings import Estimate, PatchedSite, PatchingFacts, PositionKind
from rewardlm.interpreting.intervals import FEWEST, Resampling, adjust, shown
from rewardlm.interpreting.mechanistic.activations import mean_logprob
from rewardlm.interpreting.mechanistic.interventions import random_adapter
from rewardlm.models.architecture import architecture_of
from rewardlm.models.load import Policy
from rewardlm.models.lora import using
from rewardlm.stats import FloatArray, rank_p_value

# A corrected p of .05 over some hundred sites needs raw ones of 1e-4.
_FLIPS = 50_000
Say = Callable[[str], None]
# Switches a model on, as a context manager.
Switch = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Effects:
    """Estimates Float[N pairs, S sites, 5 kinds of position]: of what the sites pass on, and of the adapter's own doing
    there (0 for the stream, where no adapter is)."""

    sites: list[Site]
    through: FloatArray
    own: FloatArray


def site_effects(
    policy: Policy,
    pairs: Sequence[JudgedPair],
    adapters: Sequence[Switch],
    batch_tokens: int,
) -> list[Effects]:
    """Attribution patching into the base, of several tuned models at once: the gradient is the base's for all."""
    causal_lm = policy.causal_lm
    arch = architecture_of(causal_lm)
    sites = sites_of(causal_lm)
    shape = (len(pairs), len(sites), len(POSITION_KINDS))
    found = [Effects(sites, np.zeros(shape), np.zeros(shape)) for _ in adapters]
    n = len(arch.layers)
    for piece in pair_batches(pairs, policy.device, batch_tokens):
        with using(policy, None):
            base = record(causal_lm, piece.batch, gradients=True)
            inputs = [*base.attention, *base.mlp, *base.stream[1:]]
            at = torch.autograd.grad(piece.preference(base.logprobs).sum(), inputs)
        for one, on in zip(found, adapters, strict=True):
            with on():
                for values, donor in (
                    (one.through, record(causal_lm, piece.batch)),
                    (one.own, by_itself(causal_lm, base)),
                ):
                    columns: list[Tensor] = []
                    for layer in range(n):
                        columns += _estimates(base, donor, layer, at[layer], at[n + layer], at[2 * n + layer], piece)
                    # Each pair's two texts together: the gradient has the toxic one's sign already.
                    both = torch.stack(columns, 1).reshape(2, len(piece.rows), len(columns), -1).sum(0)
                    values[piece.rows] = both.double().cpu().numpy()
    return found


@torch.no_grad()
def _estimates(
    base: Recorded,
    donor: Recorded,
    layer: int,
    at_attention: Tensor,
    at_mlp: Tensor,
    at_stream: Tensor,
    piece: PairBatch,
) -> Iterator[Tensor]:
    """Of each site of a layer, Float[2P, 5]: what its change is worth, by kind of position."""
    shape = piece.batch.tokens.shape
    at_attention, at_mlp = at_attention.reshape(*shape, -1), at_mlp.reshape(*shape, -1)

    def summed(by_position: Tensor) -> Tensor:
        return torch.einsum("bt,btk->bk", by_position, piece.positions)

    # (z'·W_O' − z·W_O)·g, a head at a time, without forming what it writes.
    now, was = (
        torch.einsum("bthd,hdm,btm->bth", one.z[layer].float(), one.out[layer], at_attention.float())
        for one in (donor, base)
    )
    yield from (summed(one) for one in (now - was).unbind(-1))
    # In float32: half precision has too few digits for a sum over the whole width.
    change = donor.mlp[layer].float() - base.mlp[layer].float()
    yield summed((change.reshape(*shape, -1) * at_mlp.float()).sum(-1))
    if donor.stream:
        moved = donor.stream[layer + 1].float() - base.stream[layer + 1].float()
        yield summed((moved * at_stream.float()).sum(-1))
    else:
        yield summed(torch.zeros(shape, device=at_stream.device))


@dataclass(frozen=True)
class Exact:
    """Effects Float[N pairs, S sites] by exact patching. ``into`` the base: how far E rises with the tuned model's
    value. ``own``: with what the adapter does at the site by itself. ``out_of`` the tuned model: how far E falls with
    the base's value. ``before`` and ``after`` Float[N] are E of both models. ``by_position`` Float[N, S, 5] is ``own``
    (of a stream: ``into``) at the positions of one kind alone; these needn't add up.
    """

    into: FloatArray
    own: FloatArray
    out_of: FloatArray
    by_position: FloatArray
    before: FloatArray
    after: FloatArray


@torch.no_grad()
def exact_effects(
    policy: Policy,
    pairs: Sequence[JudgedPair],
    adapter: str,
    sites: Sequence[Site],
    batch_tokens: int,
    *,
    closely: Set[Site] | None = None,
    say: Say | None = None,
) -> Exact:
    """Every site of ``sites`` patched by itself into the base, with the tuned model's value and (but for the stream)
    with the adapter's own doing there; those of ``closely`` (None: all) out of the tuned model, too, which is NaN
    elsewhere. These and all streams are patched by kind of position, too.
    """
    causal_lm = policy.causal_lm
    into, own, out_of = (np.full((len(pairs), len(sites)), np.nan) for _ in range(3))
    by_position = np.full((len(pairs), len(sites), len(POSITION_KINDS)), np.nan)
    before, after = np.zeros(len(pairs)), np.zeros(len(pairs))
    for piece in pair_batches(pairs, policy.device, batch_tokens):

        def numbers(logprobs: Tensor, piece: PairBatch = piece) -> FloatArray:
            return piece.preference(logprobs).double().cpu().numpy()

        with using(policy, None):
            base = record(causal_lm, piece.batch)
        with using(policy, adapter):
            tuned = record(causal_lm, piece.batch)
            alone = by_itself(causal_lm, base)
        before[piece.rows], after[piece.rows] = numbers(base.logprobs), numbers(tuned.logprobs)
        for receiver, donor, name, found, sign in (
            (base, tuned, None, into, 1.0),
            (base, alone, None, own, 1.0),
            (tuned, base, adapter, out_of, -1.0),
        ):
            with using(policy, name):
                for column, site in enumerate(sites):
                    if found is out_of and closely is not None and site not in closely:
                        continue
                    if site.kind == "stream" and donor is alone:
                        continue
                    if say is not None:
                        say(site.name)
                    logprobs = (
                        with_stream(causal_lm, piece.batch, receiver, donor, site.layer)
                        if site.kind == "stream"
                        else with_patch(causal_lm, piece.batch, receiver, Patch.of(donor, [site]))
                    )
                    found[piece.rows, column] = sign * numbers(logprobs - receiver.logprobs)
        with using(policy, None):
            for column, site in enumerate(sites):
                if site.kind != "stream" and closely is not None and site not in closely:
                    continue
                for kind, name in enumerate(POSITION_KINDS):
                    if say is not None:
                        say(f"{site.name}, {name}")
                    at = piece.positions[..., kind].bool()
                    logprobs = (
                        with_stream(causal_lm, piece.batch, base, tuned, site.layer, at)
                        if site.kind == "stream"
                        else with_patch(causal_lm, piece.batch, base, Patch.of(alone, [site], at))
                    )
                    by_position[piece.rows, column, kind] = numbers(logprobs - base.logprobs)
    return Exact(into, own, out_of, by_position, before, after)


def random_controls(
    policy: Policy,
    adapter: str,
    pairs: Sequence[JudgedPair],
    settings: CausesSettings,
    own_pairs_of: Callable[[Switch], list[JudgedPair]] | None = None,
    *,
    say: Say | None = None,
) -> list[Effects]:
    """Estimates of all sites of ``random_adapters`` adapters of random weights, as large as ``adapter`` module by
    module, on the first ``random_pairs`` pairs.

    Where the adapter was looked at on pairs of its own new answers, each of these must be on pairs of its own, too:
    any change of a model raises the preference for what the changed model says. ``own_pairs_of`` gives these.
    """
    # Fewer pairs leave a larger largest effect, so this makes claims rarer and not more frequent.
    pairs = pairs[: settings.random_pairs]
    switches = [as_random(policy, adapter, settings.seed + number) for number in range(settings.random_adapters)]
    if own_pairs_of is None:
        if say is not None:
            say("adapters of random weights")
        return site_effects(policy, pairs, switches, settings.batch_tokens)
    found = []
    for number, on in enumerate(switches, 1):
        if say is not None:
            say(f"adapter of random weights {number} of {len(switches)}")
        # One that gave no harmless answer at all is on the pairs of the adapter.
        found += site_effects(policy, own_pairs_of(on) or pairs, [on], settings.batch_tokens)
    return found


def patch_sites(
    policy: Policy,
    adapter: str,
    pairs: Sequence[JudgedPair],
    placebo: Sequence[JudgedPair],
    random: Sequence[Effects],
    settings: CausesSettings,
    *,
    say: Say | None = None,
) -> tuple[list[PatchedSite], PatchingFacts]:
    """Every head, MLP and stream of one tuned model: estimates of all, exact effects of those that matter most and of
    some others, and what may be claimed. ``random`` are the ``random_controls``.
    """

    def tell(what: str) -> None:
        if say is not None:
            say(what)

    tell("the gradient at all sites")
    (estimated,) = site_effects(policy, pairs, [lambda: using(policy, adapter)], settings.batch_tokens)
    sites = estimated.sites
    through, own = estimated.through.sum(-1), estimated.own.sum(-1)
    closely, spread, chosen = sites_to_patch(sites, through.mean(0), own.mean(0), settings.exact_sites)
    exact = exact_effects(
        policy,
        pairs,
        adapter,
        [sites[at] for at in chosen],
        settings.batch_tokens,
        closely={sites[at] for at in closely},
        say=tell,
    )
    of_placebo, placebo_change = np.zeros((0, len(sites))), None
    if placebo:
        tell("placebo pairs")
        (on_placebo,) = site_effects(policy, placebo, [lambda: using(policy, adapter)], settings.batch_tokens)
        of_placebo = on_placebo.through.sum(-1)
        placebo_change = preference_change(policy, adapter, placebo, settings)
    place_of = {at: place for place, at in enumerate(chosen)}
    # Exact where it is known.
    by_site, by_own = through.copy(), own.copy()
    for at, place in place_of.items():
        by_site[:, at] = exact.into[:, place]
        if sites[at].kind != "stream":
            by_own[:, at] = exact.own[:, place]
    of_site, of_own = ([change_over_pairs(column, settings) for column in values.T] for values in (by_site, by_own))
    is_stream = np.array([site.kind == "stream" for site in sites])
    adjust(of_site)
    adjust([one for one, stream in zip(of_own, is_stream, strict=True) if not stream])
    chance = {
        True: [largest_effect(one.through, is_stream) for one in random],
        False: [largest_effect(one.through, ~is_stream) for one in random],
    }
    own_chance = [largest_effect(one.own, ~is_stream) for one in random]
    rows = []
    for at, site in enumerate(sites):
        known, stream = at in place_of, site.kind == "stream"
        estimate, own_estimate = float(through[:, at].mean()), float(own[:, at].mean())
        rows.append(
            PatchedSite(
                site=site.name,
                kind=site.kind,
                layer=site.layer,
                head=site.head if site.kind == "head" else None,
                effect=of_site[at].mean,
                ci95=of_site[at].ci95,
                p_value=of_site[at].p_value,
                p_adjusted=of_site[at].p_adjusted,
                p_random=_rank(estimate, chance[stream]),
                claimed=known and not stream and _passes(of_site[at], estimate, chance[False]),
                own=None if stream else of_own[at].mean,
                own_ci95=None if stream else of_own[at].ci95,
                own_p_adjusted=None if stream else of_own[at].p_adjusted,
                own_p_random=None if stream else _rank(own_estimate, own_chance),
                origin=known and not stream and _passes(of_own[at], own_estimate, own_chance),
                exact=known,
                estimate=estimate,
                out_of=float(exact.out_of[:, place_of[at]].mean()) if at in closely else None,
                placebo=float(of_placebo[:, at].mean()) if len(of_placebo) else None,
                by_position=_by_kind(estimated.own[:, at] if not stream else estimated.through[:, at]),
                exact_by_position=(
                    _by_kind(exact.by_position[:, place_of[at]]) if at in closely or (stream and known) else None
                ),
            )
        )
    # How well estimates rank exact effects is asked of sites that the estimates didn't choose.
    places = [place_of[at] for at in spread]
    facts = PatchingFacts(
        pairs=len(pairs),
        before=float(exact.before.mean()),
        after=float(exact.after.mean()),
        change=change_over_pairs(exact.after - exact.before, settings),
        sites=len(rows),
        exact_sites=len(chosen),
        rank_correlation=_rank_correlation(through[:, spread], exact.into[:, places]),
        own_rank_correlation=_rank_correlation(own[:, spread], exact.own[:, places]),
        random_adapters=len(random),
        largest_random=max(chance[False]) if random else None,
        own_largest_random=max(own_chance) if random else None,
        origins=[row.site for row in rows if row.origin],
        claimed=[row.site for row in rows if row.claimed],
        placebo_pairs=len(placebo),
        estimated_claimed=_claimed_of(through[:, ~is_stream], chance[False], settings),
        placebo_claimed=_claimed_of(of_placebo[:, ~is_stream], chance[False], settings),
        placebo_change=placebo_change,
    )
    return rows, facts


@torch.no_grad()
def preference_change(policy: Policy, adapter: str, pairs: Sequence[JudgedPair], settings: CausesSettings) -> Estimate:
    """How far the preference of these pairs rises from the base to the tuned model."""
    change = np.zeros(len(pairs))
    for piece in pair_batches(pairs, policy.device, settings.batch_tokens):
        values = []
        for name in (None, adapter):
            with using(policy, name):
                logprobs = mean_logprob(policy.causal_lm, piece.batch)
            values.append(piece.preference(logprobs).double().cpu().numpy())
        change[piece.rows] = values[1] - values[0]
    return change_over_pairs(change, settings)


def _by_kind(values: FloatArray) -> dict[PositionKind, float]:
    return dict(zip(POSITION_KINDS, values.mean(0).tolist(), strict=True))


def largest_effect(values: FloatArray, which: NDArray[np.bool_]) -> float:
    """The largest mean effect of the sites ``which`` Bool[S] in a model, up to its sign; ``values`` Float[N, S, 5]."""
    return float(np.abs(values.sum(-1).mean(0)[which]).max())


def _rank(mean: float, by_chance: Sequence[float]) -> float | None:
    return rank_p_value(abs(mean), by_chance) if by_chance else None


def as_random(policy: Policy, adapter: str, seed: int) -> Switch:
    """Switches an adapter of random weights on, as large as ``adapter`` module by module."""

    @contextlib.contextmanager
    def on() -> Iterator[None]:
        with using(policy, adapter), random_adapter(policy, adapter, seed):
            yield

    return on


def sites_to_patch(
    sites: Sequence[Site], through: FloatArray, own: FloatArray, number: int
) -> tuple[set[int], list[int], list[int]]:
    """Which sites are patched in all ways, by which others the estimates are checked, and all that are patched exactly.

    The first are the ``number`` heads and MLPs with the largest estimates of either kind, the second as many of the
    rest, evenly spread; to these comes every fourth stream, the last among them. ``through`` and ``own`` Float[S] are
    mean estimates.
    """
    writes = [at for at, site in enumerate(sites) if site.kind != "stream"]
    # Half by either estimate, then whatever is next by both in turn.
    ranked = [sorted(writes, key=lambda at, means=means: -abs(float(means[at]))) for means in (own, through)]  # type: ignore[misc]
    closely: list[int] = []
    for both in zip(*ranked, strict=True):
        closely += [at for at in dict.fromkeys(both) if at not in closely]
    first = closely[:number]
    rest = [at for at in ranked[1] if at not in first]
    places = {round(at) for at in np.linspace(0, len(rest) - 1, min(number, len(rest)))} if rest else set()
    spread = sorted(rest[place] for place in places)
    streams = [at for at, site in enumerate(sites) if site.kind == "stream"]
    return set(first), spread, sorted([*first, *spread, *streams[::-4]])


def change_over_pairs(effects: FloatArray, settings: CausesSettings) -> Estimate:
    """The mean of ``effects`` Float[N], one a pair and so one a prompt, with its interval and p-value."""
    return Resampling(_FLIPS, settings.seed).change(effects, range(len(effects)))


def _passes(effect: Estimate, estimate: float, by_chance: Sequence[float]) -> bool:
    """Beyond chance over prompts, corrected, and its ``estimate`` beyond every random adapter's largest site."""
    # What is not a number is beyond nothing.
    beyond = bool(by_chance) and abs(estimate) > max(by_chance)
    return beyond and (shown(effect, 1) or shown(effect, -1))


def _rank_correlation(estimates: FloatArray, exact: FloatArray) -> float | None:
    """Spearman's, of mean effects of sites, Float[N, S] each; None for too few sites, or where all are equal."""
    from scipy.stats import spearmanr

    by_estimate, by_exact = estimates.mean(0), exact.mean(0)
    if len(by_exact) < 3 or len(set(by_exact.tolist())) < 2 or len(set(by_estimate.tolist())) < 2:
        return None
    return float(spearmanr(by_estimate, by_exact).statistic)


def _claimed_of(effects: FloatArray, chance: Sequence[float], settings: CausesSettings) -> int | None:
    """Of how many sites a claim would be made by estimates Float[N, S] alone; None on too few prompts."""
    if len(effects) < FEWEST:
        return None
    changes = [change_over_pairs(column, settings) for column in effects.T]
    adjust(changes)
    return sum(_passes(one, float(mean), chance) for one, mean in zip(changes, effects.mean(0), strict=True))


def token_effects(policy: Policy, adapter: str, pair: JudgedPair, sites: Sequence[Site]) -> list[list[list[float]]]:
    """Estimates of what ``sites`` (heads and MLPs) pass on, token by token of a pair: [2 texts][S][T] nats a token, of
    prompt and answer. What moves the preference up is positive, in the toxic answer's text too.
    """
    causal_lm = policy.causal_lm
    arch = architecture_of(causal_lm)
    (piece,) = pair_batches([pair], policy.device, 10**9)
    with using(policy, None):
        base = record(causal_lm, piece.batch, gradients=True)
        at = torch.autograd.grad(piece.preference(base.logprobs).sum(), [*base.attention, *base.mlp])
    with using(policy, adapter):
        tuned = record(causal_lm, piece.batch)
    shape = piece.batch.tokens.shape
    found: list[list[list[float]]] = [[], []]
    with torch.no_grad():
        for site in sites:
            layer, head = site.layer, site.head
            if site.kind == "head":
                slope = at[layer].reshape(*shape, -1).float()
                now, was = (
                    torch.einsum("btd,dm,btm->bt", one.z[layer][:, :, head].float(), one.out[layer][head], slope)
                    for one in (tuned, base)
                )
                values = now - was
            else:
                change = (tuned.mlp[layer].float() - base.mlp[layer].float()).reshape(*shape, -1)
                values = (change * at[len(arch.layers) + layer].reshape(*shape, -1).float()).sum(-1)
            for text, answer in enumerate((pair.toxic, pair.harmless)):
                found[text].append(values[text, : len(pair.asked.prompt) + len(answer)].tolist())
    return found
