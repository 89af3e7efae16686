"""What an adapter writes into the residual stream, and which of its layers carry the change of preference.

Direct writes are read off the stream; shares of layers and modules are integrated gradients along the adapter's scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.errors import ModelError
from rewardlm.interpreting.answers import ModelAnswers, RedrawnAnswers
from rewardlm.interpreting.findings import AdapterPath, AdapterWrites, Estimate, RedrawPreference, ScoreChange
from rewardlm.interpreting.intervals import Resampling, shown
from rewardlm.interpreting.mechanistic.activations import BaseText, trace
from rewardlm.interpreting.mechanistic.logit_attribution import direct_attribution, share_of_writes
from rewardlm.interpreting.mechanistic.word_contrast import Contrast
from rewardlm.models.architecture import Architecture, adapter_layers, architecture_of
from rewardlm.models.logprobs import forward_rows, row_stats
from rewardlm.models.lora import scaled, using
from rewardlm.stats import FloatArray
from rewardlm.trunk import evaluating

# By how much of the whole the shares of a path may miss it, and at how many points at most they are read.
PATH_GAP = 0.05
MOST_PATH_STEPS = 64


def read_adapter(text: BaseText, model: ModelAnswers, contrast: Contrast | None) -> AdapterWrites:
    """What the adapter wrote on some of the base's answers: by module and layer, its length against the stream's and
    its share in the contrast's score; and how much of the score's change is the adapter's own writing."""
    policy, rows = text.policy, text.focus[: text.settings.adapter_answers]
    length: dict[str, list[Tensor]] = {}
    share: dict[str, list[Tensor]] = {}
    moved, scores = [], []
    prompts: list[tuple[int, ...]] = []
    causal_lm = policy.causal_lm
    for whose, batch in text.batches(rows):
        prompts += [tuple(text.prompts[whose[row]]) for row in batch.row.tolist()]
        with using(policy, None):
            before = trace(causal_lm, batch)
            was = None if contrast is None else direct_attribution(causal_lm, before, contrast).total
        with using(policy, model.adapter):
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
    found = AdapterWrites(
        answers=len(rows),
        positions=sum(one.shape[1] for one in moved),
        moved=_by_layer(moved),
        length={name: _by_layer(parts) for name, parts in length.items()},
    )
    if scores:
        found.share = {name: _by_layer(parts) for name, parts in share.items()}
        draws = Resampling(text.settings.n_resamples, text.settings.seed)
        ends = {name: draws.by_layer(torch.cat(parts, 1).double().numpy(), prompts) for name, parts in share.items()}
        known = {name: end for name, end in ends.items() if end is not None}
        found.share_ci95 = known or None
        change = float(torch.cat(scores).mean())
        own = sum(sum(found.share.get(part, [])) for part in ("attention", "mlp"))
        found.score = ScoreChange(change=change, own=own, rest=change - own)
    return found


def _by_layer(batches: Sequence[Tensor]) -> list[float]:
    """Float[L, N] each: means over all N."""
    means: list[float] = torch.cat(list(batches), 1).mean(1).tolist()
    return means


@dataclass(frozen=True)
class PathShares:
    """What an adapter's modules contribute to an effect: ``by_module`` sums to ``after`` − ``before``, but for what is
    ``missing``. ``by_layer`` Float[L] are their sums, those outside of all layers left out. ``steps`` points were read.
    """

    before: float
    after: float
    by_module: dict[str, float]
    by_layer: FloatArray
    steps: int

    @property
    def missing(self) -> float:
        return self.after - self.before - sum(self.by_module.values())

    @property
    def adds_up(self) -> bool:
        """Whether at most 5 % of the effect is missing. If more is, nobody can say whose it is."""
        return abs(self.missing) <= PATH_GAP * abs(self.after - self.before)


def path_shares(causal_lm: Any, effect: Callable[[], Tensor], *, steps: int) -> PathShares:
    """Integrated gradients over the adapter's scale (Sundararajan et al. 2017, with modules in place of pixels).

    With E(s) the effect where module i's B·A is multiplied by s_i, module i's share is ∫₀¹ ∂E/∂s_i (t, …, t) dt, taken
    at ``steps`` Gauss-Legendre points. Shares add up to E(1, …, 1) − E(0, …, 0), which switching modules off one by one
    doesn't do. Where they miss it by more than 5 %, twice as many points are read, and so on while they are at most
    64; see ``adds_up``. ``effect()`` runs the model as it stands and gives a scalar with its graph. One backward pass a
    point, to the modules' B: s_i only ever stands beside B_i, so ∂E/∂s_i = ⟨∂E/∂B_i, B_i⟩ / s_i.

    Raises ModelError where no adapter is on.
    """
    layers = adapter_layers(causal_lm)
    layers = {name: layer for name, layer in layers.items() if any(a in layer.scaling for a in layer.active_adapters)}
    if not layers:
        raise ModelError("no adapter is on: its modules have no shares in anything")
    ups = [(name, up) for name, layer in layers.items() for up in _ups(layer)]

    def integral(steps: int) -> dict[str, float]:
        total = dict.fromkeys(layers, 0.0)
        for point, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):
            t = float(point + 1) / 2
            with scaled(layers.values(), t), torch.enable_grad():
                slopes = torch.autograd.grad(effect(), [up for _, up in ups], allow_unused=True)
            for (name, up), slope in zip(ups, slopes, strict=True):
                if slope is not None:
                    total[name] += float(weight) / 2 * float((slope.double() * up.detach().double()).sum()) / t
        return total

    arch = architecture_of(causal_lm)
    with evaluating(causal_lm), _learning([up for _, up in ups]):
        with torch.no_grad():
            after = float(effect())
            with scaled(layers.values(), 0.0):
                before = float(effect())
        while True:
            by_module = integral(steps)
            shares = PathShares(before, after, by_module, np.array(_sums(arch, causal_lm, by_module)), steps=steps)
            if shares.adds_up or 2 * steps > MOST_PATH_STEPS:
                return shares
            steps *= 2


def _ups(layer: LoraLayer) -> list[Tensor]:
    """B of the adapters that are on in ``layer``, and its bias where there is one."""
    found: list[Tensor] = []
    for name in layer.active_adapters:
        if name in layer.lora_B:
            found += layer.lora_B[name].parameters()
        elif name in layer.lora_embedding_B:
            found.append(layer.lora_embedding_B[name])
    return found


@contextlib.contextmanager
def _learning(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Inside, these have gradients; afterwards as they were."""
    kept = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, wanted in zip(parameters, kept, strict=True):
            parameter.requires_grad_(wanted)


def _sums(arch: Architecture, causal_lm: Any, by_module: Mapping[str, float]) -> list[float]:
    paths = {id(module): name for name, module in causal_lm.named_modules()}
    prefixes = [f"{paths[id(layer)]}." for layer in arch.layers]
    return [sum(share for name, share in by_module.items() if name.startswith(prefix)) for prefix in prefixes]


def fewest_layers(shares: Sequence[float], share: float = 0.8) -> int:
    """The fewest layers whose shares add up to ``share`` of the whole effect; all of them if the effect is 0 or they
    never do."""
    whole = float(np.sum(shares))
    if whole == 0:
        return len(shares)
    reached = np.cumsum(np.sort(np.asarray(shares) / whole)[::-1]) >= share
    return int(np.argmax(reached)) + 1 if reached.any() else len(shares)


def follow_path(
    text: BaseText,
    model: ModelAnswers,
    redrawn: Sequence[RedrawnAnswers] = (),
    of_base: Sequence[float] | None = None,
) -> AdapterPath | None:
    """What the model came to prefer, and by which layers and modules.

    ``before`` and ``after`` are how much the base and the model prefer its new answers to the base's old ones that were
    more toxic: the mean over pairs of log P(new) − log P(old), each per token. Pairs are the prompts whose answers'
    toxicity fell most. Any model prefers what it said itself, and after a toxic answer a second one is mostly harmless.
    So this alone says nothing about toxicity. ``redraw`` is the preference for harmless answers of the *base* over its
    toxic ones to the same prompts. The tuned model's own words are on neither side, so what the adapter changed there
    (``change``, over prompts) is about toxicity.

    Layers share in the second where there are such pairs (``of`` is ``redraw``), else in the first (``new``). If the
    second wasn't shown to rise, there is nothing to share in, and ``by_layer`` is empty. ``fewest`` is None where the
    shares don't add up to the whole within 5 % (``adds_up``). None where there is no pair of either kind.
    Pairs ``redrawn`` have an answer on both sides; ``of_base`` are the base's ``preferences`` among them, if known.
    """
    settings = text.settings
    new = _fallen(text, model)
    if not new and not redrawn:
        return None
    before = preferences(text, None, redrawn) if of_base is None else of_base
    after = preferences(text, model.adapter, redrawn)
    redraw = _redraw_preference(redrawn, before, after, settings) if redrawn else None
    followed = redrawn[: settings.pairs] or new
    if redraw is None or shown(redraw.change, 1):
        found = _shares_in_preference(text, model, followed)
    else:
        start, end = (float(np.mean(own[: len(followed)])) for own in (before, after))
        found = PathShares(start, end, {}, np.zeros(0), steps=0)
    kinds: dict[str, float] = {}
    for name, value in found.by_module.items():
        kind = ".".join(name.split(".")[-2:])
        kinds[kind] = kinds.get(kind, 0.0) + value
    whole = found.after - found.before
    new_before, new_after = (preferences(text, adapter, new) for adapter in (None, model.adapter))
    return AdapterPath(
        pairs=len(new),
        mean_fall=float(np.mean([pair.fall for pair in new])) if new else None,
        before=float(np.mean(new_before)) if new else None,
        after=float(np.mean(new_after)) if new else None,
        redraw=redraw,
        of="redraw" if redrawn else "new",
        followed=len(followed),
        whole=whole,
        by_layer=found.by_layer.tolist(),
        by_module=kinds,
        missing=found.missing,
        steps=found.steps,
        adds_up=found.adds_up,
        fewest=fewest_layers(found.by_layer.tolist()) if whole > 0 and found.adds_up else None,
    )


def _fallen(text: BaseText, model: ModelAnswers) -> list[RedrawnAnswers]:
    """The ``pairs`` prompts whose answers' toxicity fell most: the base's answer, and the model's."""
    base = text.base
    falls = [
        (old - new, row)
        for row, (old, new) in enumerate(zip(base.toxicity, model.toxicity, strict=True))
        if old is not None and new is not None and base.responses[row] and model.responses[row] and old > new
    ]
    chosen = sorted(falls, key=lambda pair: (-pair[0], pair[1]))[: text.settings.pairs]
    return [RedrawnAnswers(text.prompts[row], base.responses[row], model.responses[row], fall) for fall, row in chosen]


def _shares_in_preference(text: BaseText, model: ModelAnswers, pairs: Sequence[RedrawnAnswers]) -> PathShares:
    """Of the adapter's modules, in how much the mean log P(harmless) − log P(toxic) per token rose."""
    prompts = [pair.prompt for pair in pairs] * 2
    responses = [pair.toxic for pair in pairs] + [pair.harmless for pair in pairs]
    lengths = [len(response) for response in responses]

    def effect() -> Tensor:
        logprobs = forward_rows(text.policy.causal_lm, prompts, responses, range(len(prompts))).logprobs
        means = torch.stack([own.mean() for own in logprobs.split_with_sizes(lengths)])
        return means[len(pairs) :].mean() - means[: len(pairs)].mean()

    with using(text.policy, model.adapter):
        return path_shares(text.policy.causal_lm, effect, steps=text.settings.path_steps)


def _redraw_preference(
    redrawn: Sequence[RedrawnAnswers], before: Sequence[float], after: Sequence[float], settings: InsideSettings
) -> RedrawPreference:
    return RedrawPreference(
        pairs=len(redrawn),
        mean_fall=float(np.mean([pair.fall for pair in redrawn])),
        before=float(np.mean(before)),
        after=float(np.mean(after)),
        change=preference_change(before, after, [tuple(pair.prompt) for pair in redrawn], settings),
    )


def preference_change(
    before: Sequence[float], after: Sequence[float], prompts: Sequence[object], settings: InsideSettings
) -> Estimate:
    """How much a preference rose from the base's to the adapter's, one of each a pair, over their ``prompts``."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    draws = Resampling(settings.n_resamples, settings.seed)
    return draws.change(np.subtract(after, before), [numbers[prompt] for prompt in prompts])


def preferences(text: BaseText, adapter: str | None, pairs: Sequence[RedrawnAnswers]) -> list[float]:
    """log P(harmless) − log P(toxic), per token, of every pair, under the base with this adapter, or alone."""
    policy = text.policy
    prompts = [pair.prompt for pair in pairs] * 2
    responses = [pair.toxic for pair in pairs] + [pair.harmless for pair in pairs]
    with using(policy, adapter), evaluating(policy.causal_lm):
        read = row_stats(policy.causal_lm, prompts, responses, text.settings.batch_tokens)
    means = [float(row.logprobs.double().mean()) for row in read]
    return [harmless - toxic for toxic, harmless in zip(means[: len(pairs)], means[len(pairs) :], strict=True)]
