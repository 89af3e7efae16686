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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from scipy.stats import t as student
from torch import Tensor

from rewardlm.config import GenerationSettings, InsideSettings
from rewardlm.interpreting.causal import change_between
from rewardlm.interpreting.directions import ValueVector, rank_p_value, vector_rows
from rewardlm.interpreting.intervals import FEWEST, shown
from rewardlm.interpreting.reading import Read, Subject, batches, every
from rewardlm.interpreting.residual import Batch, Contrast, adapter_layers, evaluating, layout_of, weight_of
from rewardlm.interpreting.tokens import Judge
from rewardlm.measuring.metrics import FloatArray
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.lora import using
from rewardlm.stats import LEVEL

Prompts = Sequence[Sequence[int]]
RATIOS = ("push_ratio", "read_ratio", "write_ratio")

# Of fewer random sets even the first place is no rarer than one in twenty.
FEWEST_SETS = 20


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
def vectors_like(causal_lm: Any, vectors: Sequence[ValueVector], number: int, seed: int) -> list[list[ValueVector]]:
    """``number`` sets of as many other value vectors, no vector in two of them: each of its layer, drawn from the
    twentieth whose lengths are nearest to its own (from the ``number`` nearest, where these are more).

    Fewer sets where a layer hasn't as many others.
    """
    layout = layout_of(causal_lm)
    rng = np.random.default_rng(seed)
    taken = {(vector.layer, vector.neuron) for vector in vectors}
    by_vector: list[list[ValueVector]] = []
    for vector in vectors:
        lengths = weight_of(layout.mlp_out[vector.layer]).norm(dim=1)
        near = (lengths - lengths[vector.neuron]).abs().argsort(stable=True).tolist()
        free = [neuron for neuron in near if (vector.layer, neuron) not in taken]
        pool = free[: max(number, len(near) // 20)]
        drawn = rng.choice(len(pool), min(number, len(pool)), replace=False).tolist()
        taken |= {(vector.layer, pool[index]) for index in drawn}
        by_vector.append([ValueVector(vector.layer, pool[index], vector.sign, 0.0, ()) for index in drawn])
    return [list(one) for one in zip(*by_vector, strict=False)]


# So many of the random sets answer prompts too, which takes most of the time. They say what others take from toxicity,
# and nothing about chance.
_ANSWERING_SETS = 2


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

    Of every model, plain, with ``vectors`` silenced, and with sets of ``vectors_like`` them silenced: ``toxicity`` of
    new answers to ``ablation_prompts`` different prompts (half of them those whose base's answers are most toxic),
    from the same random streams, and ``logits``, toxic minus neutral words', on the base's answers, means by prompt.

    Two questions stand between the named ones and a finding. ``beyond_random``: is what they take more than the mean
    of the other sets, over prompts? ``p_value_random``: how many of ``random_sets`` other sets take as much, the named
    one itself counted? A few sets say nothing about chance, so the rank is that of the logits, which are cheap to read;
    toxicity has it only where there are no words to read logits of. A tuned model's sets are all tried only where the
    base passes and silencing the named ones takes anything from it: else nothing is claimed.
    """
    if not vectors:
        return None
    base = subjects[0]
    sets = vectors_like(policy.causal_lm, vectors, settings.random_sets, settings.seed)
    asked = _asked(prompts, base, settings.ablation_prompts)
    # The toxic ones first, and others besides: of three answers no interval says anything.
    answers = [*focus, *(row for row in usable if row not in focus)][: settings.ablation_answers]
    owners = [tuple(prompts[row]) for row in answers]

    def toxicity() -> list[float | None]:
        return _answered(policy, [prompts[row] for row in asked], judge, settings)

    def logits() -> list[float | None]:
        assert contrast is not None
        return [*map(float, _by_owner(_word_scores(policy, prompts, base, answers, contrast, settings), owners))]

    measured: dict[str, tuple[Callable[[], list[float | None]], int, float | None]] = {}
    if asked:
        measured["toxicity"] = toxicity, _ANSWERING_SETS if contrast is not None else len(sets), 1.0
    if contrast is not None:
        measured["logits"] = logits, len(sets), None
    by_model: dict[str, Any] = {}
    for subject in subjects:
        lost_here: dict[str, Any] = {"toxicity": None, "logits": None}
        with using(policy, subject.adapter):
            for name, (measure, number, largest) in measured.items():

                def without(silent: Sequence[ValueVector], measure: Callable[[], Any] = measure) -> list[float | None]:
                    with silenced(policy.causal_lm, silent):
                        found: list[float | None] = measure()
                    return found

                plain, named = without([]), without(vectors)
                tried = number
                if subject is not base:
                    change = change_between(
                        plain, named, n_resamples=settings.n_resamples, seed=settings.seed, largest=largest
                    )
                    worth = takes_more(by_model[base.label][name]) and shown(change, -1)
                    tried = number if worth else _ANSWERING_SETS
                others = [without(one) for one in sets[:tried]]
                lost_here[name] = lost(plain, named, others, settings, largest=largest)
        by_model[subject.label] = lost_here
    return {
        "vectors": len(vectors),
        "random_sets": len(sets),
        "answering_sets": min(measured["toxicity"][1], len(sets)) if asked else 0,
        "prompts": len(asked),
        "answers": len(answers) if contrast is not None else 0,
        "prompts_of_answers": len(set(owners)) if contrast is not None else 0,
        "by_model": by_model,
    }


def takes_more(found: Mapping[str, Any]) -> bool:
    """Whether the named vectors were shown to take more than others do: over prompts, and by rank among the sets."""
    rank: float | None = found["p_value_random"]
    return rank is not None and rank <= LEVEL and shown(found["beyond_random"], -1)


def _asked(prompts: Prompts, base: Subject, number: int) -> list[int]:
    """Rows of different prompts, half of them those whose base's answers are most toxic."""
    first: dict[tuple[int, ...], int] = {}
    for row in sorted(range(len(prompts)), key=lambda row: (-(base.toxicity[row] or 0.0), row)):
        first.setdefault(tuple(prompts[row]), row)
    ranked = list(first.values())
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
) -> Tensor:
    """Of each answer the mean of the toxic words' logits minus the neutral ones', over its positions, Float[N]."""
    layout = layout_of(policy.causal_lm)
    found: dict[int, float] = {}
    for own, batch in batches(policy, prompts, base.responses, rows, settings):
        with evaluating(policy.causal_lm):
            states = layout.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)[0]
            scores = contrast.of(layout.head(states[batch.where]).float()).cpu()
        for index, row in enumerate(own):
            found[row] = float(scores[batch.row.cpu() == index].mean())
    return torch.tensor([found[row] for row in rows])


def lost(
    plain: Sequence[float | None],
    named: Sequence[float | None],
    others: Sequence[Sequence[float | None]],
    settings: InsideSettings,
    *,
    largest: float | None = 1.0,
) -> dict[str, Any]:
    """From values by prompt of the plain model, of the named vectors silenced, and of each other set; ``largest`` is by
    how much a value can change, None where nothing bounds it. There is no rank among fewer sets than 20, of which none
    could be the first of twenty."""
    random = [
        None if any(value is None for value in values) else float(np.mean([v for v in values if v is not None]))
        for values in zip(*others, strict=True)
    ]

    def change(before: Sequence[float | None], after: Sequence[float | None]) -> dict[str, Any] | None:
        return change_between(before, after, n_resamples=settings.n_resamples, seed=settings.seed, largest=largest)

    # All sets on the same prompts: those that every one of them has a value of.
    known = [row for row, values in enumerate(zip(plain, named, *others, strict=True)) if None not in values]
    losses = [
        float(np.mean([(values[row] or 0.0) - (plain[row] or 0.0) for row in known])) for values in (named, *others)
    ]
    ranked = bool(known) and len(others) >= FEWEST_SETS
    return {
        "plain": _mean(plain),
        "named": _mean(named),
        "random": _mean(random),
        "change": change(plain, named),
        "random_change": change(plain, random) if random else None,
        "random_changes": losses[1:] if known else [],
        "beyond_random": change(random, named) if random else None,
        "p_value_random": rank_p_value(-losses[0], [-loss for loss in losses[1:]]) if ranked else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
