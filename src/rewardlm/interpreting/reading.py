"""What one model makes of a text, read off its residual stream: a summary of each part, ready for JSON.

These are the parts that ``inside.examine`` puts together. All read the base's answers, so that models are compared on
the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.interpreting import directions
from rewardlm.interpreting.intervals import Resampling
from rewardlm.interpreting.residual import (
    Batch,
    Contrast,
    LogitShares,
    batch_of,
    direct_attribution,
    logit_lens,
    share_of_writes,
    trace,
)
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import microbatches
from rewardlm.models.lora import using

TOXIC_ABOVE = 0.5
Reading = tuple[Sequence[int], Sequence[int], float]


@dataclass(frozen=True)
class Redrawn:
    """Two answers of the base to one ``prompt``, one of them toxic, as token ids; ``fall`` is how much more so."""

    prompt: Sequence[int]
    toxic: Sequence[int]
    harmless: Sequence[int]
    fall: float


@dataclass(frozen=True)
class Subject:
    """A model and its answers: ``adapter`` is the name of a PEFT adapter on the policy, None the base.

    ``responses`` are token ids, ``toxicity`` P(toxic) of each by the run's judge, None where unscored. ``change`` is
    how that went from the base's, ``{"mean", "ci95", "n"}``, where more answers are known than these; None: over these.
    """

    label: str
    adapter: str | None
    responses: Sequence[Sequence[int]]
    toxicity: Sequence[float | None]
    change: Mapping[str, Any] | None = None


def batches(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    rows: Sequence[int],
    settings: InsideSettings,
) -> Iterator[tuple[list[int], Batch]]:
    """Rows in batches of about equal length, with the rows' numbers."""
    lengths = [len(prompts[row]) + len(responses[row]) for row in rows]
    for piece in microbatches(lengths, settings.batch_tokens):
        own = [rows[index] for index in piece]
        yield own, batch_of([prompts[row] for row in own], [responses[row] for row in own], policy.device)


def read_directions(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    base: Subject,
    labelled: Sequence[Reading],
    settings: InsideSettings,
) -> tuple[dict[str, Any], Tensor | None]:
    """Probe and toxic direction on every layer of the base's stream, averaged over each response's positions.

    Learnt from the base's answers and what is ``labelled``. A tuned model's harmless answers to what makes the base
    toxic would teach the opposite: there the base's stream says what it would have answered itself.

    The direction Float[M], not normed, is that of the layer where it tells held-out answers apart best (see
    ``directions.toxic_direction``). None, with the reason, where either class has fewer answers than there are folds.
    """
    readings: list[Reading] = [
        (prompts[row], base.responses[row], toxicity)
        for row, toxicity in enumerate(base.toxicity)
        if toxicity is not None and base.responses[row]
    ]
    readings += [reading for reading in labelled if reading[1]]
    readings = list({(tuple(p), tuple(r)): (p, r, t) for p, r, t in readings}.values())
    chosen = _balanced([toxicity > TOXIC_ABOVE for _, _, toxicity in readings], settings)
    toxic = np.array([readings[index][2] > TOXIC_ABOVE for index in chosen], dtype=bool)
    groups = [tuple(readings[index][0]) for index in chosen]
    summary: dict[str, Any] = {"n": len(chosen), "n_toxic": int(toxic.sum()), "reason": None}
    few = min(int(toxic.sum()), int((~toxic).sum()), len({g for g, t in zip(groups, toxic, strict=True) if t}))
    if few < settings.probe_folds:
        summary["reason"] = (
            f"{int(toxic.sum())} toxic and {int((~toxic).sum())} other answers to different prompts could be read, and "
            f"{settings.probe_folds} folds need as many of each"
        )
        return summary, None
    x = _pooled(policy, [readings[index] for index in chosen], settings)
    fold = directions.folds_of(toxic, groups, settings.probe_folds, settings.seed)
    by_probe = [directions.held_out(layer, toxic, fold, directions.by_probe) for layer in x]
    by_mean = [directions.held_out(layer, toxic, fold, directions.by_direction) for layer in x]
    best = int(np.argmax([held.auc for held in by_mean[1:]])) + 1
    chance = [
        directions.best_of_shuffled(
            x[1:], toxic, groups, score, n_folds=settings.probe_folds, number=settings.shuffles, seed=settings.seed
        )
        for score in (directions.by_probe, directions.by_direction)
    ]
    difference = directions.toxic_direction(x[best], toxic)
    summary |= {
        "layer": best,
        "folds": settings.probe_folds,
        "probe_accuracy": [held.accuracy for held in by_probe],
        "probe_auc": [held.auc for held in by_probe],
        "mean_accuracy": [held.accuracy for held in by_mean],
        "mean_auc": [held.auc for held in by_mean],
        "majority": float(max(toxic.mean(), 1 - toxic.mean())),
        "shuffled": {
            "number": settings.shuffles,
            **{
                name: {
                    "auc": [one.auc for one in by_chance],
                    "p_value": directions.rank_p_value(
                        max(held.auc for held in real[1:]), [one.auc for one in by_chance]
                    ),
                }
                for name, real, by_chance in zip(("probe", "mean"), (by_probe, by_mean), chance, strict=True)
            },
        },
        # The best layer's, as the best layer's of the real labels is what one looks at.
        "shuffled_accuracy": float(np.mean([one.accuracy for one in chance[0]])),
        "length": float(np.linalg.norm(difference)),
        "stream_length": float(np.linalg.norm(x[best], axis=-1).mean()),
    }
    return summary, torch.tensor(difference, dtype=torch.float32, device=policy.device)


def _balanced(toxic: Sequence[bool], settings: InsideSettings) -> list[int]:
    """At most ``probe_answers`` indices drawn by the seed, half of them toxic where there are so many."""
    order = np.random.default_rng(settings.seed).permutation(len(toxic)).tolist()
    kinds = [[index for index in order if toxic[index] is kind] for kind in (True, False)]
    half = settings.probe_answers // 2
    n_toxic = min(len(kinds[0]), max(half, settings.probe_answers - len(kinds[1])))
    return sorted(kinds[0][:n_toxic] + kinds[1][: settings.probe_answers - n_toxic])


def _pooled(policy: Policy, readings: Sequence[Reading], settings: InsideSettings) -> directions.Floats:
    """The base's stream averaged over each response's positions: Float[L+1, n, M]."""
    prompts, responses = [r[0] for r in readings], [r[1] for r in readings]
    pooled: dict[int, Tensor] = {}
    with using(policy, None):
        for rows, batch in batches(policy, prompts, responses, range(len(readings)), settings):
            stream = trace(policy.causal_lm, batch).stream
            for index, row in enumerate(rows):
                pooled[row] = stream[:, batch.row == index].mean(1).double().cpu()
    return torch.stack([pooled[row] for row in range(len(readings))], 1).numpy()


@dataclass
class Read:
    """What is kept of one model's reading of the base's answers: a summary for the result, and arrays for later.

    ``activations`` Float[N, K] of the value vectors, ``rows`` Int[N] whose position it is (rows of the run),
    ``score`` Float[N], the contrast's.
    """

    summary: dict[str, Any]
    activations: Tensor
    rows: Tensor
    score: Tensor | None


def read_stream(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    base: Subject,
    subject: Subject,
    usable: Sequence[int],
    focus: Sequence[int],
    contrast: Contrast | None,
    vectors: Sequence[directions.ValueVector],
    settings: InsideSettings,
) -> Read:
    """Lens, direct attribution and attention of ``subject`` on the base's answers."""
    shares: list[dict[str, Tensor]] = []
    attended: list[dict[str, Tensor]] = []
    lenses: list[dict[str, Tensor]] = []
    activations: list[Tensor] = []
    positions: list[Tensor] = []
    causal_lm = policy.causal_lm
    n_positions = sum(len(base.responses[row]) for row in usable)
    keep = every(n_positions, settings.lens_positions)
    seen = 0
    with using(policy, subject.adapter):
        for rows, batch in batches(policy, prompts, base.responses, usable, settings):
            found = trace(causal_lm, batch, patterns=True)
            if found.patterns is not None:
                starts = torch.tensor([len(prompts[row]) for row in rows], device=batch.row.device)[batch.row]
                attended.append(_attended(found.patterns, starts))
            if vectors:
                activations.append(directions.activations_of(found.neurons, vectors).cpu())
            positions.append(torch.tensor(rows)[batch.row.cpu()])
            if contrast is not None:
                own = _on_cpu(direct_attribution(causal_lm, found, contrast))
                shares.append(own)
                chosen = [i for i in range(len(batch.row)) if seen + i in keep]
                if chosen:
                    lens = logit_lens(causal_lm, found.stream[:, chosen], batch.targets[chosen], contrast)
                    lenses.append({name: values.cpu() for name, values in vars(lens).items()})
            seen += len(batch.row)
    whose = torch.cat(positions)
    in_focus = torch.isin(whose, torch.tensor(focus))
    summary: dict[str, Any] = {
        "positions": len(whose),
        "attention": {name: torch.cat([one[name] for one in attended], 1).mean(1).tolist() for name in attended[0]},
    }
    score = None
    if contrast is not None:
        joined = {name: torch.cat([one[name] for one in shares], -2 if "heads" in name else -1) for name in shares[0]}
        score = joined["total"]
        summed = LogitShares(**joined).summed()
        summary["shares"] = {
            name: values[..., in_focus, :].mean(-2).tolist()
            if "heads" in name
            else values[..., in_focus].mean(-1).tolist()
            for name, values in joined.items()
        }
        summary["largest_error"] = float((summed - score).abs().max())
        summary["lens"] = {name: torch.cat([one[name] for one in lenses], 1).mean(1).tolist() for name in lenses[0]}
        summary["lens_positions"] = len(keep)
    kept = torch.cat(activations) if vectors else torch.zeros(len(whose), 0)
    return Read(summary, kept, whose, score)


def _on_cpu(shares: LogitShares) -> dict[str, Tensor]:
    """The fields of ``shares``, on the CPU."""
    return {name: values.cpu() for name, values in vars(shares).items()}


def every(n: int, wanted: int) -> set[int]:
    """``wanted`` of n numbers, evenly spread; all if there are no more."""
    return set(np.linspace(0, n - 1, min(n, wanted)).round().astype(int).tolist())


def _attended(patterns: Tensor, starts: Tensor) -> dict[str, Tensor]:
    """Where attention Float[L, N, H, T] goes, Float[L, N, H] each: to the first token (where heads with nothing to do
    rest, Xiao et al. 2023), to the rest of the prompt, to the response, which begins at ``starts`` Int[N]; and its
    entropy in bits."""
    place = torch.arange(patterns.shape[-1], device=patterns.device)
    in_prompt = ((place > 0) & (place < starts[:, None])).to(patterns)
    in_response = (place >= starts[:, None]).to(patterns)
    return {
        "first": patterns[..., 0].cpu(),
        "prompt": torch.einsum("lnht,nt->lnh", patterns, in_prompt).cpu(),
        "response": torch.einsum("lnht,nt->lnh", patterns, in_response).cpu(),
        "entropy": -torch.xlogy(patterns, patterns).sum(-1).div(np.log(2)).cpu(),
    }


def read_adapter(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    base: Subject,
    subject: Subject,
    focus: Sequence[int],
    contrast: Contrast | None,
    settings: InsideSettings,
) -> dict[str, Any]:
    """What the adapter wrote on some of the base's answers: by module and layer, its length against the stream's and
    its share in the contrast's score; and how much of the score's change is the adapter's own writing."""
    rows = list(focus)[: settings.adapter_answers]
    length: dict[str, list[Tensor]] = {}
    share: dict[str, list[Tensor]] = {}
    moved, scores = [], []
    causal_lm = policy.causal_lm
    for _, batch in batches(policy, prompts, base.responses, rows, settings):
        with using(policy, None):
            before = trace(causal_lm, batch)
            was = None if contrast is None else direct_attribution(causal_lm, before, contrast).total
        with using(policy, subject.adapter):
            after = trace(causal_lm, batch, adapter=True)
            now = None if contrast is None else direct_attribution(causal_lm, after, contrast).total
            size = before.stream.norm(dim=-1)
            moved.append(((after.stream - before.stream).norm(dim=-1) / size).cpu())
            for name, write in (after.adapter or {}).items():
                length.setdefault(name, []).append((write.norm(dim=-1) / size[1:]).cpu())
                if contrast is not None:
                    share.setdefault(name, []).append(share_of_writes(causal_lm, after, write, contrast).cpu())
        if was is not None and now is not None:
            scores.append((now - was).cpu())
    summary: dict[str, Any] = {
        "answers": len(rows),
        "positions": sum(one.shape[1] for one in moved),
        "moved": torch.cat(moved, 1).mean(1).tolist(),
        "length": {name: torch.cat(parts, 1).mean(1).tolist() for name, parts in length.items()},
    }
    if scores:
        summary["share"] = {name: torch.cat(parts, 1).mean(1).tolist() for name, parts in share.items()}
        change = float(torch.cat(scores).mean())
        own = sum(sum(summary["share"].get(part, [])) for part in ("attention", "mlp"))
        summary["score"] = {"change": change, "own": own, "rest": change - own}
    return summary


def follow_path(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    base: Subject,
    subject: Subject,
    settings: InsideSettings,
    redrawn: Sequence[Redrawn] = (),
) -> dict[str, Any] | None:
    """What the model came to prefer, and by which layers and modules.

    ``before`` and ``after`` are how much the base and the model prefer its new answers to the base's old ones that were
    more toxic: the mean over pairs of log P(new) − log P(old), each per token. Pairs are the prompts whose answers'
    toxicity fell most. Any model prefers what it said itself, and answers that are toxic once are mostly followed by
    harmless ones; so this alone says nothing about toxicity. ``redraw`` is the preference for harmless answers of
    the *base* over toxic ones of it, to the same prompts: its own words are on neither side, so what the adapter
    changed there (``change``, over prompts) is about toxicity. It is what remains of the first preference without that
    for the new answers over harmless second draws.

    Layers share in the second where there are such pairs (``of`` is ``redraw``), else in the first (``new``).
    ``fewest`` is null where the shares don't add up to the whole within 5 % (``adds_up``). None where there is no pair
    of either kind.
    """
    falls = [
        (old - new, row)
        for row, (old, new) in enumerate(zip(base.toxicity, subject.toxicity, strict=True))
        if old is not None and new is not None and base.responses[row] and subject.responses[row] and old > new
    ]
    chosen = sorted(falls, key=lambda pair: (-pair[0], pair[1]))[: settings.pairs]
    new = [Redrawn(prompts[row], base.responses[row], subject.responses[row], fall) for fall, row in chosen]
    redrawn = [pair for pair in redrawn if pair.toxic and pair.harmless][: settings.redraw_pairs]
    if not new and not redrawn:
        return None
    followed = redrawn[: settings.pairs] or new
    batch = batch_of(
        [pair.prompt for pair in followed] * 2,
        [pair.toxic for pair in followed] + [pair.harmless for pair in followed],
        policy.device,
    )

    def effect() -> Tensor:
        means = directions.mean_logprob(policy.causal_lm, batch)
        return means[len(followed) :].mean() - means[: len(followed)].mean()

    with using(policy, subject.adapter):
        found = directions.path_shares(policy.causal_lm, effect, steps=settings.path_steps)
    kinds: dict[str, float] = {}
    for name, value in found.by_module.items():
        kind = ".".join(name.split(".")[-2:])
        kinds[kind] = kinds.get(kind, 0.0) + value
    whole = found.after - found.before
    preferred = [_preferences(policy, subject.adapter, pairs, settings) for pairs in (new, redrawn)]
    return {
        "pairs": len(new),
        "mean_fall": float(np.mean([pair.fall for pair in new])) if new else None,
        "before": float(np.mean(preferred[0][0])) if new else None,
        "after": float(np.mean(preferred[0][1])) if new else None,
        "redraw": {
            "pairs": len(redrawn),
            "mean_fall": float(np.mean([pair.fall for pair in redrawn])),
            "before": float(np.mean(preferred[1][0])),
            "after": float(np.mean(preferred[1][1])),
            "change": preference_change(*preferred[1], [tuple(pair.prompt) for pair in redrawn], settings),
        }
        if redrawn
        else None,
        "of": "redraw" if redrawn else "new",
        "followed": len(followed),
        "whole": whole,
        "by_layer": found.by_layer.tolist(),
        "by_module": kinds,
        "missing": found.missing,
        "steps": found.steps,
        "adds_up": found.adds_up,
        "fewest": directions.fewest_layers(found.by_layer.tolist()) if whole > 0 and found.adds_up else None,
    }


def preference_change(
    before: Sequence[float], after: Sequence[float], prompts: Sequence[object], settings: InsideSettings
) -> dict[str, Any]:
    """How much a preference rose from the base's to the adapter's, one of each a pair, over their ``prompts``:
    ``{"mean", "ci95", "p_value", "n"}``."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    draws = Resampling(settings.n_resamples, settings.seed)
    return draws.change(np.subtract(after, before), [numbers[prompt] for prompt in prompts])


def _preferences(
    policy: Policy, adapter: str | None, pairs: Sequence[Redrawn], settings: InsideSettings
) -> tuple[list[float], list[float]]:
    """log P(harmless) − log P(toxic), per token, of every pair: under the base, and under the adapter."""
    prompts = [pair.prompt for pair in pairs] * 2
    responses = [pair.toxic for pair in pairs] + [pair.harmless for pair in pairs]
    found = []
    for name in (None, adapter):
        means = np.zeros(len(prompts))
        with using(policy, name), torch.no_grad():
            for rows, batch in batches(policy, prompts, responses, range(len(prompts)), settings):
                means[rows] = directions.mean_logprob(policy.causal_lm, batch).double().cpu().numpy()
        found.append((means[len(pairs) :] - means[: len(pairs)]).tolist())
    return found[0], found[1]
