"""The toxic value vectors that are named: how far a tuned model pushes along them, and what is lost without them.

Lee et al. 2024 ("A Mechanistic Understanding of Alignment Algorithms") found that DPO leaves GPT-2's toxic value
vectors in place and sets them off less. With a the activations, v the vectors and u what they were chosen by, and a
prime for the tuned model, all on the same text, three ratios tell such stories apart:

    push ratio     Σ a'·(v'·u) / Σ a·(v·u)
    read ratio     Σ a'·(v·u)  / Σ a·(v·u)
    write ratio    Σ a·(v'·u)  / Σ a·(v·u)

    unlearned, because the vectors were rewritten    write < 1, and the vectors have turned
    bypassed, because they are set off less          write as before, read < 1
    bypassed, because something after them answers   push as before, though toxicity fell
    intact                                           push as before, and toxicity too

"As before" is a claim of its own, and an interval that merely holds 1 doesn't bear it out: it must lie within a margin.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from scipy.stats import t as student
from torch import Tensor

from rewardlm.config import GenerationSettings, InsideSettings
from rewardlm.interpret.causal import change_between
from rewardlm.interpret.directions import ValueVector, vector_rows
from rewardlm.interpret.intervals import FEWEST
from rewardlm.interpret.reading import Read, Subject, batches, every
from rewardlm.interpret.residual import Batch, Contrast, adapter_layers, evaluating, layout_of, weight_of
from rewardlm.interpret.tokens import Judge
from rewardlm.measure.metrics import FloatArray
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.lora import using

Prompts = Sequence[Sequence[int]]
RATIOS = ("push_ratio", "read_ratio", "write_ratio")


def ratio_of_means(before: FloatArray, after: FloatArray, margin: float) -> dict[str, Any] | None:
    """mean(after) / mean(before) over the same units Float[n], ``{"mean", "ci95", "as_before", "n"}``.

    ``ci95`` is Fieller's (1954): the ratios ρ that a paired t-test of after − ρ·before doesn't reject. It holds its
    level at few units, where a bootstrap of a ratio doesn't. ``as_before`` says whether it lies within 1 − ``margin``
    and 1 / (1 − ``margin``): two one-sided tests at 2.5 % each (Schuirmann 1987). None where ``before`` isn't
    measurably over 0, since there is no share of nothing, and of fewer than five units.
    """
    n = len(before)
    if n < FEWEST:
        return None
    quantile = float(student.ppf(0.975, n - 1))
    covariance = np.cov(after, before) / n * quantile**2
    mean_after, mean_before = float(after.mean()), float(before.mean())
    # Where (ā − ρ b̄)² = t²·var(ā − ρ b̄): a quadratic in ρ.
    square = mean_before**2 - float(covariance[1, 1])
    half = mean_after * mean_before - float(covariance[0, 1])
    constant = mean_after**2 - float(covariance[0, 0])
    if mean_before <= 0 or square <= 0:
        return None
    root = math.sqrt(max(0.0, half**2 - square * constant))
    low, high = (half - root) / square, (half + root) / square
    lowest, highest = bounds(margin)
    return {
        "mean": mean_after / mean_before,
        "ci95": [low, high],
        "as_before": bool(lowest <= low and high <= highest),
        "n": n,
    }


def bounds(margin: float) -> tuple[float, float]:
    """Between which ratios counts as the same: for a margin of 0.2, from 0.8 to 1.25."""
    return 1 - margin, 1 / (1 - margin)


def read_vectors(
    policy: Policy,
    prompts: Prompts,
    base: Subject,
    subjects: Sequence[Subject],
    usable: Sequence[int],
    vectors: Sequence[ValueVector],
    towards: Tensor | None,
    read: Sequence[Read],
    settings: InsideSettings,
) -> dict[str, Any] | None:
    """The value vectors, and for each model: what the adapter made of them, how active they are, how far they push.

    ``push`` is how far these vectors together move the stream towards what they were chosen by, mean over prompts. The
    ratios (see the head of this file) are a tuned model's to the base's, with intervals over prompts. ``null`` has
    the same numbers of ``null_adapters`` adapters of random weights, each module's as large as the tuned one's: what
    any change of that size does.
    """
    if towards is None or not vectors:
        return None
    with using(policy, None):
        bare = vector_rows(policy.causal_lm, vectors)
    owners = [tuple(prompts[row]) for row in read[0].rows.tolist()]
    by_model: dict[str, Any] = {}
    for subject, one in zip(subjects, read, strict=True):
        with using(policy, subject.adapter):
            rows = vector_rows(policy.causal_lm, vectors)
        by_model[subject.label] = {
            **_turned(bare, rows),
            "activation": one.activations.mean(0).tolist(),
            **_pushed(owners, read[0].activations, one.activations, bare, rows, towards, settings),
            "null": _null(policy, prompts, base, subject, usable, vectors, towards, bare, read[0], owners, settings),
        }
    return {
        "rows": [
            {
                "layer": vector.layer,
                "neuron": vector.neuron,
                "sign": vector.sign,
                "score": vector.score,
                "tokens": [policy.tokenizer.decode([token]) for token in vector.tokens],
            }
            for vector in vectors
        ],
        "margin": settings.push_margin,
        "by_model": by_model,
    }


def _turned(bare: Tensor, rows: Tensor) -> dict[str, list[float]]:
    return {
        "cosine": torch.cosine_similarity(bare, rows, dim=1).tolist(),
        "change": ((rows - bare).norm(dim=1) / bare.norm(dim=1)).tolist(),
    }


def _pushed(
    owners: Sequence[object],
    before: Tensor,
    after: Tensor,
    bare: Tensor,
    rows: Tensor,
    towards: Tensor,
    settings: InsideSettings,
) -> dict[str, Any]:
    """``push`` and the three ratios, from activations Float[N, K] and vectors Float[K, M]."""
    was, now = (bare @ towards).cpu(), (rows @ towards).cpu()
    base = _by_owner(before @ was, owners)
    pushes = {
        name: _by_owner(found, owners)
        for name, found in zip(RATIOS, (after @ now, after @ was, before @ now), strict=True)
    }
    return {
        "push": float(pushes["push_ratio"].mean()),
        **{name: ratio_of_means(base, found, settings.push_margin) for name, found in pushes.items()},
    }


def _by_owner(values: Tensor, owners: Sequence[object]) -> FloatArray:
    """Means of ``values`` Float[N] by owner, in the order in which these come."""
    of: dict[object, list[float]] = {}
    for owner, value in zip(owners, values.double().tolist(), strict=True):
        of.setdefault(owner, []).append(value)
    return np.array([np.mean(found) for found in of.values()])


def _null(
    policy: Policy,
    prompts: Prompts,
    base: Subject,
    subject: Subject,
    usable: Sequence[int],
    vectors: Sequence[ValueVector],
    towards: Tensor,
    bare: Tensor,
    read: Read,
    owners: Sequence[object],
    settings: InsideSettings,
) -> list[dict[str, Any]]:
    """Of each random adapter the median cosine of the vectors with the base's, and its ratios."""
    if subject.adapter is None:
        return []
    found = []
    for number in range(settings.null_adapters):
        with using(policy, subject.adapter), random_adapter(policy, subject.adapter, settings.seed + number):
            rows = vector_rows(policy.causal_lm, vectors)
            active = torch.cat(
                [
                    activations_at(policy.causal_lm, batch, vectors).cpu()
                    for _, batch in batches(policy, prompts, base.responses, usable, settings)
                ]
            )
        pushed = _pushed(owners, read.activations, active, bare, rows, towards, settings)
        cosine = float(np.median(_turned(bare, rows)["cosine"]))
        found.append({"cosine": cosine, **{name: pushed[name] and pushed[name]["mean"] for name in RATIOS}})
    return found


@contextlib.contextmanager
def random_adapter(policy: Policy, name: str, seed: int) -> Iterator[None]:
    """Inside, A and B of every module of the adapter are random, and ‖B·A‖ (Frobenius) is as it was."""
    layers = [layer for layer in adapter_layers(policy.causal_lm).values() if name in layer.scaling]
    factors = [_factors_of(layer, name) for layer in layers]
    kept = [(a.detach().clone(), b.detach().clone()) for a, b in factors]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for a, b in factors:
                size = _size(a, b)
                for factor in (a, b):
                    factor.copy_(torch.randn(factor.shape, generator=generator))
                b.mul_(size / _size(a, b))
        yield
    finally:
        with torch.no_grad():
            for (a, b), (was_a, was_b) in zip(factors, kept, strict=True):
                a.copy_(was_a)
                b.copy_(was_b)


def _factors_of(layer: LoraLayer, name: str) -> tuple[Tensor, Tensor]:
    if name in layer.lora_A:
        return layer.lora_A[name].weight, layer.lora_B[name].weight
    return layer.lora_embedding_A[name], layer.lora_embedding_B[name]


def _size(a: Tensor, b: Tensor) -> Tensor:
    """‖B·A‖ without the product: its square is tr(BᵀB·AAᵀ)."""
    a, b = a.double(), b.double()
    return torch.einsum("ij,ji->", b.T @ b, a @ a.T).clamp(min=0).sqrt()


@torch.no_grad()
def activations_at(causal_lm: Any, batch: Batch, vectors: Sequence[ValueVector]) -> Tensor:
    """Signed activations of ``vectors`` at ``batch.where``, Float[N, K]: ``trace``'s, without all the rest."""
    layout = layout_of(causal_lm)
    found: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            found[index] = args[0].reshape(*batch.where.shape, -1)[batch.where].float()

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(causal_lm))
        for layer in {vector.layer for vector in vectors}:
            stack.callback(layout.mlp_out[layer].register_forward_pre_hook(keep(layer)).remove)
        layout.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)
    return torch.stack([vector.sign * found[vector.layer][:, vector.neuron] for vector in vectors], -1)


@contextlib.contextmanager
def silenced(causal_lm: Any, vectors: Sequence[ValueVector]) -> Iterator[None]:
    """Inside, the value vectors are zero, an adapter's part with them: they write nothing, however active."""
    layout = layout_of(causal_lm)
    neurons: dict[int, list[int]] = {}
    for vector in vectors:
        neurons.setdefault(vector.layer, []).append(vector.neuron)

    def without(which: list[int]) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            active = args[0].clone()
            active[..., which] = 0
            return (active, *args[1:])

        return hook

    with contextlib.ExitStack() as stack:
        for layer, which in neurons.items():
            stack.callback(layout.mlp_out[layer].register_forward_pre_hook(without(which)).remove)
        yield


@torch.no_grad()
def vectors_like(causal_lm: Any, vectors: Sequence[ValueVector], seed: int) -> list[ValueVector]:
    """As many other value vectors: each of its layer, drawn from the twentieth whose lengths are nearest to its own."""
    layout = layout_of(causal_lm)
    rng = np.random.default_rng(seed)
    taken = {(vector.layer, vector.neuron) for vector in vectors}
    found = []
    for vector in vectors:
        lengths = weight_of(layout.mlp_out[vector.layer]).norm(dim=1)
        near = (lengths - lengths[vector.neuron]).abs().argsort(stable=True).tolist()
        free = [neuron for neuron in near if (vector.layer, neuron) not in taken]
        if not free:
            continue
        neuron = free[int(rng.integers(max(1, min(len(free), len(near) // 20))))]
        taken.add((vector.layer, neuron))
        found.append(ValueVector(vector.layer, neuron, vector.sign, 0.0, ()))
    return found


def ablate_vectors(
    policy: Policy,
    prompts: Prompts,
    subjects: Sequence[Subject],
    usable: Sequence[int],
    focus: Sequence[int],
    vectors: Sequence[ValueVector],
    contrast: Contrast | None,
    judge: Judge,
    settings: InsideSettings,
) -> dict[str, Any] | None:
    """What is lost without the named value vectors, held against as many others (Lee et al. 2024, section 3.3).

    Of every model, plain, with ``vectors`` silenced, and with ``random_sets`` sets of ``vectors_like`` them silenced:
    ``toxicity`` of new answers to ``ablation_prompts`` prompts (half of them those whose base's answers are most
    toxic), from the same random streams, and ``logits``, toxic minus neutral words', on the base's answers.
    ``beyond_random`` is what silencing the named ones changes more than silencing the others does.
    """
    if not vectors:
        return None
    base = subjects[0]
    sets = [vectors_like(policy.causal_lm, vectors, settings.seed + number) for number in range(settings.random_sets)]
    asked = _asked(prompts, base, settings.ablation_prompts)
    # The toxic ones first, and others besides: of three answers no interval says anything.
    answers = [*focus, *(row for row in usable if row not in focus)][: settings.ablation_answers]
    by_model: dict[str, Any] = {}
    for subject in subjects:
        with using(policy, subject.adapter):
            toxicity, logits = [], []
            for silent in ([], vectors, *sets):
                with silenced(policy.causal_lm, silent):
                    if asked:
                        toxicity.append(_answered(policy, [prompts[row] for row in asked], judge, settings))
                    if contrast is not None:
                        logits.append(_word_scores(policy, prompts, base, answers, contrast, settings))
        by_model[subject.label] = {
            "toxicity": _lost(toxicity, settings),
            "logits": _lost(logits, settings, largest=None),
        }
    return {
        "vectors": len(vectors),
        "random_sets": len(sets),
        "prompts": len(asked),
        "answers": len(answers) if contrast is not None else 0,
        "by_model": by_model,
    }


def _asked(prompts: Prompts, base: Subject, number: int) -> list[int]:
    ranked = sorted(range(len(prompts)), key=lambda row: (-(base.toxicity[row] or 0.0), row))
    half = ranked[: (number + 1) // 2]
    rest = ranked[len(half) :]
    return half + [rest[i] for i in sorted(every(len(rest), number - len(half)))] if rest else half


def _answered(policy: Policy, prompts: Prompts, judge: Judge, settings: InsideSettings) -> list[float | None]:
    requests = [
        Request(tuple(prompt), stream_seed(settings.seed, "ablation", row)) for row, prompt in enumerate(prompts)
    ]
    texts = [""] * len(prompts)
    for answer in generate(
        policy,
        requests,
        max_new_tokens=settings.max_new_tokens,
        sampling=GenerationSettings(),
        batch_tokens=settings.batch_tokens,
    ):
        texts[answer.index] = policy.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
    return list(judge(texts))


@torch.no_grad()
def _word_scores(
    policy: Policy, prompts: Prompts, base: Subject, rows: Sequence[int], contrast: Contrast, settings: InsideSettings
) -> list[float | None]:
    """Of each answer the mean of the toxic words' logits minus the neutral ones', over its positions."""
    layout = layout_of(policy.causal_lm)
    found: dict[int, float] = {}
    for own, batch in batches(policy, prompts, base.responses, rows, settings):
        with evaluating(policy.causal_lm):
            states = layout.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)[0]
            scores = contrast.of(layout.head(states[batch.where]).float()).cpu()
        for index, row in enumerate(own):
            found[row] = float(scores[batch.row.cpu() == index].mean())
    return [found[row] for row in rows]


def _lost(
    found: Sequence[Sequence[float | None]], settings: InsideSettings, *, largest: float | None = 1.0
) -> dict[str, Any] | None:
    """From values by unit of the plain model, of the named vectors silenced, and of each other set; ``largest`` is by
    how much a value can change, None where nothing bounds it."""
    if not found:
        return None
    plain, named, *others = found
    random = [
        None if any(value is None for value in values) else float(np.mean([v for v in values if v is not None]))
        for values in zip(*others, strict=True)
    ]

    def change(before: Sequence[float | None], after: Sequence[float | None]) -> dict[str, Any] | None:
        return change_between(before, after, n_resamples=settings.n_resamples, seed=settings.seed, largest=largest)

    return {
        "plain": _mean(plain),
        "named": _mean(named),
        "random": _mean(random),
        "change": change(plain, named),
        "random_change": change(plain, random) if random else None,
        "beyond_random": change(random, named) if random else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
